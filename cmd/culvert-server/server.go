package main

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"

	"culvert/auth"
	"culvert/auth/textfile"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

// prepare makes the server that the user described.
func prepare(src config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
	s, err := load(src, nil, stderr)
	if err != nil {
		return nil, err
	}
	cfg := s.cfg
	record, err := openAudit(cfg, stdout, s.log)
	if err != nil {
		s.close()
		return nil, err
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: cfg.Listen, Beside: s.beside(), Backends: s.backends(), Path: cfg.Path, TLS: s.web.tls, Guard: auth.NewGuard(s.directory),
		Other: s.web.other, Stealth: cfg.Stealth, AllowOrigins: cfg.AllowOrigins, TrustedProxies: cfg.TrustedProxies,
		Key: s.key, Introduce: !cfg.Stealth,
		MaxSessions: cfg.MaxSessions, MaxSessionsPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxUnauthenticated: cfg.MaxUnauthenticated, MaxUnauthenticatedPerAddress: cfg.MaxUnauthenticatedPerAddress,
		MaxHeaderBytes:    program.Bytes(cfg.MaxHeaderBytes),
		MaxOpensPerSecond: cfg.MaxOpensPerSecond, MaxUpload: int64(cfg.MaxUpload), MaxDownload: int64(cfg.MaxDownload),
		Audit:    record.log,
		Settings: program.Settings(cfg.Settings, s.log),
	})
	if err != nil {
		s.close()
		record.close()
		return nil, err
	}
	web := s.web
	job := &program.Job{
		Run: func(ctx context.Context) error { return web.run(ctx, server) },
		Log: s.log, Warnings: s.warnings,
		Close: func() {
			s.close()
			record.close()
		},
	}
	if len(s.files()) > 0 || record.file != nil || cfg.TLSCert != "" {
		job.Reload = &program.Reload{
			Files: func() []string { return s.files() },
			Do: func(ctx context.Context) ([]string, error) {
				next, err := load(src, s, stderr)
				if err != nil {
					return nil, err
				}
				next.web.close() // it was right; the one that there is goes on
				next.web = s.web
				if err := record.reopen(); err != nil {
					next.sources.closeBut(s.sources)
					return nil, err
				}
				if err := server.SetBackends(ctx, next.backends()); err != nil {
					next.sources.closeBut(s.sources)
					return nil, err
				}
				s.web.use(next.clientCAs)
				server.Use(next.directory)
				s.sources.closeBut(next.sources)
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
	clientCAs *auth.ClientCAs // nil: no client shows a certificate
	sources   keySources
	web       *web
	key       *ecdh.PrivateKey // nil: nobody can seal
	log       *slog.Logger
	warnings  []string
}

// load reads what the user said of the server, and the files that it names. Keys that
// are fetched, and the names of tokens in a list, are taken over from before, which is
// nil for the first time. An error is everything that is wrong. What it returns is to be
// closed.
func load(src config.Sources, before *setup, stderr io.Writer) (*setup, error) {
	if before == nil {
		before = new(setup)
	}
	cfg, warnings, err := config.LoadServer(src)
	problems := program.Problems(err)
	s := &setup{cfg: cfg, log: program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel), warnings: warnings}
	clientCAs, more, problem := newClientCAs(cfg)
	s.clientCAs = clientCAs
	if problem != nil {
		problems = append(problems, *problem)
	}
	s.warnings = append(s.warnings, more...)
	issuers, opened, wrong := openIssuers(cfg, before.sources, s.log)
	problems = append(problems, wrong...)
	s.sources = opened
	directory, more, wrong := newDirectory(cfg, before.directory, auth.DirectoryConfig{ClientCAs: clientCAs, Issuers: issuers})
	problems = append(problems, wrong...)
	s.directory, s.warnings = directory, append(s.warnings, more...)
	s.web, wrong = newWeb(cfg, clientCAs, s.log)
	problems = append(problems, wrong...)
	if s.key, more, err = newKey(cfg); err != nil {
		problems = append(problems, config.Problem{Key: "--key-file", What: err.Error(), Hint: "make one with culvert-server keygen"})
	}
	s.warnings = append(s.warnings, more...)
	s.warnings = append(s.warnings, auth.Exposed(cfg.SecretFile, cfg.TLSKey)...)
	s.warnings = append(s.warnings, program.Expiring(cfg.TLSCert, cfg.ClientCA)...)
	if err := problems.Err(); err != nil {
		s.sources.closeBut(before.sources)
		s.web.close()
		return nil, err
	}
	return s, nil
}

// beside is where the process listens besides for clients.
func (s *setup) beside() []string {
	if s.cfg.ACMEHTTP == "" {
		return nil
	}
	return []string{s.cfg.ACMEHTTP}
}

// backends are the web servers that the process itself asks, and that a client which
// listens in their place could pretend to be: the fallback, and issuers without TLS.
func (s *setup) backends() []string {
	var all []string
	if fallback := s.web.cfg.Fallback; fallback != nil { // the one that runs, after a reload too
		all = append(all, hostPort(fallback))
	}
	for _, issuer := range s.cfg.Issuers {
		if u, err := url.Parse(issuer.Keys.Value); err == nil && u.Scheme == "http" {
			all = append(all, hostPort(u))
		}
	}
	return all
}

// hostPort is "host:port" of the server in a URL.
func hostPort(u *url.URL) string {
	port := "80"
	if u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
}

// close ends the fetching of keys, and what the web server has.
func (s *setup) close() {
	s.sources.closeBut(nil)
	s.web.close()
}

// files are those that are read again when they have changed.
func (s *setup) files() []string {
	files := []string{s.cfg.File, s.cfg.IdentitiesDir, s.cfg.TokenFile, s.cfg.ClientCA, s.cfg.CRL}
	for _, issuer := range s.cfg.Issuers {
		files = append(files, issuer.Keys.Value) // which is none if it is a URL
	}
	return slices.DeleteFunc(files, func(file string) bool { return file == "" })
}

// newKey returns the server's private key, nil if it has none.
func newKey(cfg *config.Server) (key *ecdh.PrivateKey, warnings []string, err error) {
	if cfg.KeyFile == "" {
		return nil, nil, nil
	}
	private, warnings, err := auth.ReadPrivateKey(cfg.KeyFile)
	return private.ECDH(), warnings, err
}

// maxLists bounds a file of revocation lists in bytes: large authorities have long ones.
const maxLists = 64 << 20

// newClientCAs reads the authorities of client certificates and what they have
// revoked; nil: no client shows a certificate.
func newClientCAs(cfg *config.Server) (c *auth.ClientCAs, warnings []string, problem *config.Problem) {
	if cfg.ClientCA == "" {
		return nil, nil, nil
	}
	authorities, err := program.ReadCertificates(cfg.ClientCA)
	if err == nil { // alone first, so that what is wrong is known to be in this file
		c, _, err = auth.NewClientCAs(authorities, nil)
	}
	if err != nil {
		return nil, nil, &config.Problem{Key: "--client-ca", What: inFile(cfg.ClientCA, err), Hint: "give a PEM file with the certificates of the authorities"}
	}
	if cfg.CRL == "" {
		return c, nil, nil
	}
	lists, err := textfile.Read(cfg.CRL, maxLists)
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
