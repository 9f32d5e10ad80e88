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
func prepare(src config.Sources, stderr io.Writer) (*program.Job, error) {
	s, err := load(src)
	if err != nil {
		return nil, err
	}
	cfg := s.cfg
	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: cfg.Listen, Path: cfg.Path, TLS: s.tls, Guard: auth.NewGuard(s.directory),
		MaxSessions: cfg.MaxSessions, MaxSessionsPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxUnauthenticated: cfg.MaxUnauthenticated, MaxUnauthenticatedPerAddress: cfg.MaxUnauthenticatedPerAddress,
		MaxHeaderBytes: program.Bytes(cfg.MaxHeaderBytes),
		Settings:       program.Settings(cfg.Settings, log),
	})
	if err != nil {
		return nil, err
	}
	job := &program.Job{Run: server.Run, Log: log, Warnings: s.warnings}
	if len(s.files()) > 0 {
		job.Reload = &program.Reload{
			Files: func() []string { return s.files() },
			Do: func(context.Context) ([]string, error) {
				next, err := load(src)
				if err != nil {
					return nil, err
				}
				server.Use(next.directory)
				s = next
				return append(next.warnings, program.NeedsRestart(config.Fixed(cfg, next.cfg))...), nil
			},
		}
	}
	return job, nil
}

// setup is a server as the user described it.
type setup struct {
	cfg       *config.Server
	directory *auth.Directory
	tls       *tls.Config // nil for plain ws
	warnings  []string
}

// load reads what the user said of the server, and the files that it names. An error
// is everything that is wrong.
func load(src config.Sources) (*setup, error) {
	cfg, warnings, err := config.LoadServer(src)
	problems := program.Problems(err)
	s := &setup{cfg: cfg, warnings: warnings}
	directory, more, wrong := newDirectory(cfg)
	problems = append(problems, wrong...)
	s.directory, s.warnings = directory, append(s.warnings, more...)
	if s.tls, err = newTLS(cfg); err != nil {
		problems = append(problems, config.Problem{Key: "--tls-cert", What: err.Error(), Hint: "give --tls-cert and --tls-key PEM files that belong together"})
	}
	s.warnings = append(s.warnings, auth.Exposed(cfg.SecretFile, cfg.TLSKey)...)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

// files are those that are read again when they have changed.
func (s *setup) files() []string {
	var files []string
	for _, file := range []string{s.cfg.File, s.cfg.IdentitiesDir, s.cfg.TokenFile} {
		if file != "" {
			files = append(files, file)
		}
	}
	return files
}

// newTLS returns the server's TLS settings, nil for plain ws.
func newTLS(cfg *config.Server) (*tls.Config, error) {
	if cfg.TLSCert == "" || cfg.TLSKey == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, nil
}
