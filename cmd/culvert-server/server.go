package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

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
	clientCAs, more, problem := newClientCAs(cfg)
	if problem != nil {
		problems = append(problems, *problem)
	}
	warnings = append(warnings, more...)
	directory, more, err := newDirectory(cfg, clientCAs)
	if err != nil {
		problems = append(problems, program.BadCredential(err))
	}
	warnings = append(warnings, more...)
	tlsConfig, err := newTLS(cfg, clientCAs)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-cert", What: err.Error(), Hint: "give --tls-cert and --tls-key PEM files that belong together"})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile, cfg.TLSKey)...)

	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: cfg.Listen, Path: cfg.Path, TLS: tlsConfig, Guard: auth.NewGuard(directory),
		MaxSessions: cfg.MaxSessions, MaxSessionsPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxUnauthenticated: cfg.MaxUnauthenticated, MaxUnauthenticatedPerAddress: cfg.MaxUnauthenticatedPerAddress,
		MaxHeaderBytes: program.Bytes(cfg.MaxHeaderBytes),
		Settings:       program.Settings(cfg.Settings, log),
	})
	if err != nil {
		return nil, err
	}
	return &program.Job{Run: server.Run, Log: log, Warnings: warnings}, nil
}

// newDirectory is who may connect and what each may do.
func newDirectory(cfg *config.Server, clientCAs *auth.ClientCAs) (d *auth.Directory, warnings []string, err error) {
	policy := auth.Everything()
	if cfg.GatewayPorts {
		policy.Listen = policy.Dial
	}
	c := auth.DirectoryConfig{ClientCAs: clientCAs}
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

// newClientCAs reads the authorities of client certificates and what they have
// revoked; nil: no client shows a certificate.
func newClientCAs(cfg *config.Server) (c *auth.ClientCAs, warnings []string, problem *config.Problem) {
	if cfg.ClientCA == "" {
		return nil, nil, nil
	}
	authorities, err := os.ReadFile(cfg.ClientCA)
	if err == nil { // alone first, so that what is wrong is known to be in this file
		c, _, err = auth.NewClientCAs(authorities, nil)
	}
	if err != nil {
		return nil, nil, &config.Problem{Key: "--client-ca", What: inFile(cfg.ClientCA, err), Hint: "give a PEM file with the certificates of the authorities"}
	}
	if cfg.CRL == "" {
		return c, nil, nil
	}
	lists, err := os.ReadFile(cfg.CRL)
	if err == nil {
		c, warnings, err = auth.NewClientCAs(authorities, lists)
	}
	if err != nil {
		return nil, nil, &config.Problem{Key: "--crl", What: inFile(cfg.CRL, err), Hint: "give a list of each authority, as openssl ca -gencrl makes it when crlnumber is set"}
	}
	return c, warnings, nil
}

// inFile says what is wrong with a file in one line.
func inFile(path string, err error) string {
	if _, ok := errors.AsType[*fs.PathError](err); !ok {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// newTLS returns the server's TLS settings, nil for plain ws.
func newTLS(cfg *config.Server, clientCAs *auth.ClientCAs) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if clientCAs != nil {
		c.ClientCAs, c.ClientAuth = clientCAs.Pool(), tls.VerifyClientCertIfGiven
	}
	return c, nil
}
