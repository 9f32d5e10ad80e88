package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
)

func tokenCommand() *program.Command {
	var label, expires string
	create := &program.Command{
		Name:    "new",
		Summary: "make a token: it goes to standard output, what the server needs of it to standard error",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "label", Usage: "what logs call it", Destination: &label},
			&cli.StringFlag{Name: "expires", Usage: "when it ends: 90d or 12h from now, 2027-01-31 or 2027-01-31T12:00:00Z", DefaultText: "never", Destination: &expires},
		},
		Prepare: func(_ config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			until, problems := expiry(expires, time.Now())
			if strings.ContainsFunc(label, func(r rune) bool { return !strconv.IsPrint(r) }) {
				problems = append(problems, config.Problem{Key: "--label", What: "has a character in it that cannot be seen", Hint: "remove it"})
			}
			if len(problems) > 0 {
				return nil, problems
			}
			return &program.Job{Log: program.NewLogger(stderr, "text", 0), Run: func(context.Context) error {
				text, token := auth.NewToken()
				token.Label, token.Expires = label, until
				if _, err := fmt.Fprintln(stdout, text); err != nil {
					return err
				}
				_, err := fmt.Fprintf(stderr, "The token is shown only now. Under tokens of its identity the server needs\n  - %s\n", line(token))
				return err
			}}, nil
		},
	}
	return &program.Command{Name: "token", Summary: "tokens of clients", Commands: []*program.Command{create}}
}

// line is a token as it stands in the configuration file.
func line(t auth.Token) string {
	fields := []string{"hash: " + strconv.Quote(t.Hash())}
	if t.Label != "" {
		fields = append(fields, "label: "+strconv.Quote(t.Label))
	}
	if !t.Expires.IsZero() {
		fields = append(fields, "expires: "+t.Expires.UTC().Format(time.RFC3339))
	}
	return "{" + strings.Join(fields, ", ") + "}"
}

// expiry reads a time, or how long it is from now: days, or what else a duration may
// have.
func expiry(text string, now time.Time) (time.Time, config.Problems) {
	if text == "" {
		return time.Time{}, nil
	}
	wrong := func(what, hint string) (time.Time, config.Problems) {
		return time.Time{}, config.Problems{{Key: "--expires", What: what, Hint: hint}}
	}
	at, err := config.ParseTime(text)
	if err != nil {
		var d time.Duration
		if number, ok := strings.CutSuffix(text, "d"); ok {
			days, e := strconv.ParseUint(number, 10, 16) // some 180 years
			d, err = time.Duration(days)*24*time.Hour, e
		} else {
			d, err = time.ParseDuration(text)
		}
		if err != nil {
			return wrong(strconv.Quote(text)+" is not a time", "write it like 90d, 12h, 2027-01-31 or 2027-01-31T12:00:00Z")
		}
		at = now.Add(d).Truncate(time.Second)
	}
	if !at.After(now) {
		return wrong(text+" is in the past", "give a time to come")
	}
	return at, nil
}
