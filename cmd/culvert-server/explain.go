package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

func explainCommand() *program.Command {
	var identity string
	var args []string
	return &program.Command{
		Name:      "explain",
		Summary:   "say which rule decides what an identity may reach",
		Arguments: "dial|listen HOST:PORT",
		Args:      &args,
		Options:   config.ServerOptions(),
		Flags:     []cli.Flag{&cli.StringFlag{Name: "identity", Usage: "who asks", Destination: &identity}},
		Prepare: func(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			ask, err := question(args)
			if err != nil {
				return nil, err
			}
			s, err := load(src, stderr)
			if err != nil {
				return nil, err
			}
			guard := auth.NewGuard(s.directory)
			if !guard.Knows(identity) {
				s.close()
				return nil, config.Problems{unknown(s.cfg, identity)}
			}
			run := func(ctx context.Context) error {
				own, err := tunnel.Own(ctx, append(s.beside(), s.cfg.Listen), s.backends())
				if err != nil {
					return err
				}
				guard.Protect(own)
				rulings, err := ask(ctx, guard, identity)
				if err != nil {
					return err
				}
				denied := fmt.Errorf("%s %s: %w", args[0], args[1], auth.ErrDenied)
				for _, v := range rulings {
					fmt.Fprintln(stdout, s.describe(args[0], identity, v))
					if v.Allowed {
						denied = nil
					}
				}
				return denied
			}
			return &program.Job{Run: run, Log: s.log, Warnings: s.warnings, Close: s.close}, nil
		},
	}
}

// question is what the arguments ask for.
func question(args []string) (func(ctx context.Context, guard *auth.Guard, identity string) ([]tunnel.Ruling, error), error) {
	if len(args) == 2 {
		switch args[0] {
		case "dial":
			return func(ctx context.Context, guard *auth.Guard, identity string) ([]tunnel.Ruling, error) {
				return tunnel.ExplainDial(ctx, guard, identity, args[1])
			}, nil
		case "listen":
			return func(ctx context.Context, guard *auth.Guard, identity string) ([]tunnel.Ruling, error) {
				return tunnel.ExplainListen(ctx, guard, identity, args[1])
			}, nil
		}
	}
	return nil, config.Problems{{Key: "explain", What: "needs to know what is to be explained",
		Hint: "write explain --identity NAME dial HOST:PORT, or listen, with the flags first"}}
}

// unknown is the problem of a name that nobody has.
func unknown(cfg *config.Server, identity string) config.Problem {
	p := config.Problem{Key: "--identity", What: fmt.Sprintf("there is no identity %q", identity)}
	var names []string
	for _, id := range cfg.Identities {
		names = append(names, id.Name.Value)
	}
	near := config.Nearest(identity, names)
	switch {
	case identity == "":
		p.What, p.Hint = "is not set", "say who asks"
	case near != "":
		p.Hint = "did you mean " + near + "?"
	case cfg.TokenFile != "":
		p.Hint = "the tokens of a token file are token-1, token-2 and so on"
	}
	return p
}

// describe is a ruling in words, and where its rule stands.
func (s *setup) describe(op, identity string, r tunnel.Ruling) string {
	said := "denied"
	if r.Allowed {
		said = "allowed"
	}
	text := fmt.Sprintf("%s %s: %s: %s", op, r.Addr, said, r.Why)
	name, _, _ := strings.Cut(identity, "/") // before the subject of a signed token
	i := slices.IndexFunc(s.cfg.Identities, func(id config.Identity) bool { return id.Name.Value == name })
	if i < 0 || r.Rule < 0 {
		return text
	}
	rules := s.cfg.Identities[i].Dial
	if op == auth.OpListen {
		rules = s.cfg.Identities[i].Listen
	}
	if r.Rule >= len(rules) { // of allow: everything
		return text
	}
	return text + " (" + rules[r.Rule].Place() + ")"
}
