package main

import (
	"context"
	"io"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

// prepare makes the server that the user described.
func prepare(src config.Sources, stderr io.Writer) (*program.Job, error) {
	cfg, warnings, err := config.LoadServer(src)
	if err != nil {
		return nil, err
	}
	var problems config.Problems
	directory, more, err := newDirectory(cfg)
	if err != nil {
		problems = append(problems, program.BadCredential(err))
	}
	warnings = append(warnings, more...)
	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	web, wrong := newWeb(cfg, log)
	problems = append(problems, wrong...)
	if len(problems) > 0 {
		return nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile, cfg.TLSKey)...)

	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: cfg.Listen, Path: cfg.Path, TLS: web.tls, Guard: auth.NewGuard(directory),
		Other: web.other, Stealth: cfg.Stealth, AllowOrigins: cfg.AllowOrigins, TrustedProxies: cfg.TrustedProxies,
		MaxSessions: cfg.MaxSessions, MaxSessionsPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxUnauthenticated: cfg.MaxUnauthenticated, MaxUnauthenticatedPerAddress: cfg.MaxUnauthenticatedPerAddress,
		MaxHeaderBytes: program.Bytes(cfg.MaxHeaderBytes),
		Settings:       program.Settings(cfg.Settings, log),
	})
	if err != nil {
		return nil, err
	}
	run := func(ctx context.Context) error { return web.run(ctx, server) }
	return &program.Job{Run: run, Log: log, Warnings: warnings}, nil
}

// newDirectory is who may connect and what each may do.
func newDirectory(cfg *config.Server) (d *auth.Directory, warnings []string, err error) {
	policy := auth.Everything()
	if cfg.GatewayPorts {
		policy.Listen = policy.Dial
	}
	var c auth.DirectoryConfig
	switch {
	case cfg.InsecureNoAuth:
		c.Anybody = &auth.Identity{Policy: policy}
	case cfg.TokenFile != "":
		c.Identities, warnings, err = auth.ReadTokens(policy, cfg.TokenFile)
	default:
		c.Identities, warnings, err = auth.NewTokens(policy, cfg.Token.Reveal())
	}
	if err != nil {
		return nil, nil, err
	}
	d, err = auth.NewDirectory(c)
	return d, warnings, err
}
