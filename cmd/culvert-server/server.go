package main

import (
	"context"
	"crypto/tls"
	"io"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

// prepare makes the server that the user described.
func prepare(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
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
	tlsConfig, err := newTLS(cfg)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-cert", What: err.Error(), Hint: "give --tls-cert and --tls-key PEM files that belong together"})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile, cfg.TLSKey)...)

	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	record, err := openAudit(cfg, stdout, log)
	if err != nil {
		return nil, err
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: cfg.Listen, Path: cfg.Path, TLS: tlsConfig, Guard: auth.NewGuard(directory),
		MaxSessions: cfg.MaxSessions, MaxSessionsPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxUnauthenticated: cfg.MaxUnauthenticated, MaxUnauthenticatedPerAddress: cfg.MaxUnauthenticatedPerAddress,
		MaxHeaderBytes:    program.Bytes(cfg.MaxHeaderBytes),
		MaxOpensPerSecond: cfg.MaxOpensPerSecond, MaxUpload: int64(cfg.MaxUpload), MaxDownload: int64(cfg.MaxDownload),
		Audit:    record.log,
		Settings: program.Settings(cfg.Settings, log),
	})
	if err != nil {
		record.close()
		return nil, err
	}
	return &program.Job{Log: log, Warnings: warnings, Run: func(ctx context.Context) error {
		defer record.close()
		return server.Run(ctx)
	}}, nil
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

// newTLS returns the server's TLS settings, nil for plain ws.
func newTLS(cfg *config.Server) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, nil
}
