package main

import (
	"context"
	"fmt"
	"io"

	"culvert/cmd/internal/program"
	"culvert/config"
)

func checkCommand() *program.Command {
	return &program.Command{
		Name:    "check",
		Summary: "say all that is wrong with the configuration and the files that it names",
		Options: config.ServerOptions(),
		Prepare: func(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			s, err := load(src, stderr)
			if err != nil {
				return nil, err
			}
			run := func(context.Context) error {
				_, err := fmt.Fprintln(stdout, "ok: "+s.summary())
				return err
			}
			return &program.Job{Run: run, Log: s.log, Warnings: s.warnings, Close: s.close}, nil
		},
	}
}

// summary is one line about who may come.
func (s *setup) summary() string {
	rules, everything := 0, 0
	for _, id := range s.cfg.Identities {
		rules += len(id.Dial) + len(id.Listen)
		if id.Everything {
			everything++
		}
	}
	text := fmt.Sprintf("%d identities, %d rules", len(s.cfg.Identities), rules)
	if everything > 0 {
		text += fmt.Sprintf(", %d of them allowed everything", everything)
	}
	switch {
	case s.cfg.InsecureNoAuth:
		text += ", and everybody else"
	case s.cfg.TokenFile != "":
		text += ", and the tokens in " + s.cfg.TokenFile
	case !s.cfg.Token.Empty():
		text += ", and a token"
	}
	return text
}
