package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

// prepare makes the client that the user described.
func prepare(src config.Sources, stderr io.Writer) (*program.Job, error) {
	cfg, warnings, err := config.LoadClient(src)
	if err != nil {
		return nil, err
	}
	var problems config.Problems
	credential, more, err := newCredential(cfg)
	if err != nil {
		problems = append(problems, program.BadCredential(err))
	}
	warnings = append(warnings, more...)
	tlsConfig, err := newTLS(cfg)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-ca", What: err.Error(), Hint: "give a PEM file with certificates"})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile)...)

	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Server: cfg.Server, Header: cfg.Header, Credential: credential, TLS: tlsConfig, AllowPlaintext: cfg.AllowPlaintext,
		Proxy: cfg.Proxy,
		Local: forwards(cfg.Local), Remote: forwards(cfg.Remote),
		RetryInitial: cfg.RetryInitial, MaxBackoff: cfg.MaxBackoff,
		HeartbeatMin: cfg.HeartbeatMin, HeartbeatMax: cfg.HeartbeatMax, MaxCarrierAge: cfg.MaxCarrierAge,
		StateFile: stateFile(cfg, log),
		Settings:  program.Settings(cfg.Settings, log),
	})
	if err != nil {
		return nil, err
	}
	return &program.Job{Run: client.Run, Log: log, Warnings: warnings}, nil
}

// stateFile is where the client keeps what it finds about the way to the server, ""
// for nowhere.
func stateFile(cfg *config.Client, log *slog.Logger) string {
	switch cfg.StateFile {
	case "none":
		return ""
	case "":
		dir, err := os.UserCacheDir()
		if err != nil {
			log.Debug("no state file", "error", err)
			return ""
		}
		return filepath.Join(dir, "culvert", "paths.json")
	default:
		return cfg.StateFile
	}
}

// newCredential returns what gives the client its token, nil for none. A token file
// is read now, to tell what is wrong with it, and again at each dial.
func newCredential(cfg *config.Client) (credential func() (string, error), warnings []string, err error) {
	switch {
	case cfg.TokenFile != "":
		if _, warnings, err = auth.ReadToken(cfg.TokenFile); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) {
			token, _, err := auth.ReadToken(cfg.TokenFile)
			return token, err
		}
	case !cfg.Token.Empty():
		if _, warnings, err = auth.NewTokens(cfg.Token.Reveal()); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) { return cfg.Token.Reveal(), nil }
	}
	return credential, warnings, nil
}

func newTLS(cfg *config.Client) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         cfg.TLSServerName,
		InsecureSkipVerify: cfg.TLSInsecureSkipVerify,
	}
	if cfg.TLSCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(cfg.TLSCA)
	if err != nil {
		return nil, err
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", cfg.TLSCA)
	}
	return c, nil
}

func forwards(list []config.Forward) []tunnel.Forward {
	var converted []tunnel.Forward
	for _, f := range list {
		converted = append(converted, tunnel.Forward(f))
	}
	return converted
}
