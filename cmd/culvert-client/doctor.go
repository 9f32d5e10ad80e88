package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

// maxDoctorWait bounds --long.
const maxDoctorWait = 24 * time.Hour

func doctorCommand() *program.Command {
	var long time.Duration
	var asJSON bool
	return &program.Command{
		Name:    "doctor",
		Summary: "walk the way to the server and say what stands in it",
		Options: config.ClientOptions(),
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "long", Usage: "wait so long (10m, say) for connections to be cut for being idle or old", DefaultText: "not at all", Destination: &long},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object a line", Destination: &asJSON},
		},
		Prepare: func(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			if long < 0 || long > maxDoctorWait {
				return nil, config.Problems{{Key: "--long", What: long.String() + " is out of range", Hint: "give a time up to 24h"}}
			}
			life, end := context.WithCancel(context.Background())
			s, err := load(life, src, stderr)
			if err != nil {
				end()
				return nil, err
			}
			paper := report{out: stdout, json: json.NewEncoder(stdout), asJSON: asJSON}
			d := tunnel.Doctor{Config: s.client, Long: long, Found: paper.finding}
			run := func(ctx context.Context) error {
				defer context.AfterFunc(ctx, end)()
				diagnosis, err := d.Examine(ctx)
				if err != nil {
					return err
				}
				paper.end(diagnosis)
				return diagnosis.Err
			}
			return &program.Job{Run: run, Log: s.client.Logger, Warnings: s.warnings, Close: end}, nil
		},
	}
}

// report is what a doctor has found, on its way to the user.
type report struct {
	out    io.Writer
	json   *json.Encoder
	asJSON bool
}

func (r *report) finding(f tunnel.Finding) {
	advice := ""
	if f.Verdict == tunnel.VerdictFail {
		advice = program.Hint(f.Err)
	}
	if r.asJSON {
		_ = r.json.Encode(struct {
			tunnel.Finding
			Advice string `json:"advice,omitempty"` // what to do about a FAIL
		}{f, advice})
		return
	}
	fmt.Fprintf(r.out, "%-12s  %-4s  %s\n", f.Step, f.Verdict, program.OneLine(f.Text))
	if advice != "" {
		fmt.Fprintf(r.out, "%-12s  %-4s  %s\n", "", "  ->", advice)
	}
}

func (r *report) end(d tunnel.Diagnosis) {
	if r.asJSON {
		_ = r.json.Encode(d)
		return
	}
	fmt.Fprintln(r.out)
	for _, advice := range d.Advice {
		fmt.Fprintf(r.out, "- %s\n", program.OneLine(advice))
	}
	switch {
	case !d.Works:
		fmt.Fprintln(r.out, "No tunnel comes up.")
	case d.Broken > 0:
		fmt.Fprintf(r.out, "A tunnel works, but not all forwards: %d of them would fail.\n", d.Broken)
	default:
		fmt.Fprintln(r.out, "A tunnel works.")
	}
}
