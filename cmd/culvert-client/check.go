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
		Summary: "check the configuration and the files that it names, and report every problem",
		Options: config.ClientOptions(),
		Prepare: func(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			life, end := context.WithCancel(context.Background())
			s, err := load(life, src, stderr)
			if err != nil {
				end()
				return nil, err
			}
			run := func(context.Context) error {
				_, err := fmt.Fprintf(stdout, "ok: %d servers, %d forwards here (-L), %d forwards at the server (-R)\n",
					len(s.cfg.Servers), len(s.cfg.Local), len(s.cfg.Remote))
				return err
			}
			return &program.Job{Run: run, Log: s.client.Logger, Warnings: append(s.warnings, idle(s.client)...), Close: end}, nil
		},
	}
}
