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
	s, err := load(src, stderr)
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
	job := &program.Job{
		Run: func(ctx context.Context) error { return s.web.run(ctx, server) },
		Log: s.log, Warnings: s.warnings, Memory: int64(cfg.Memory),
		Close: func() {
			s.close()
			record.close()
		},
	}
	if len(s.files()) > 0 || record.file != nil || cfg.TLSCert != "" {
		job.Reload = &program.Reload{
			Files: func() []string { return s.files() },
			// Nothing keeps a change of the identities from coming into force, which may be
			// that one is gone, but what is wrong with them or the configuration itself.
			Parts: []program.Part{
				{Name: "identities", Do: func(ctx context.Context) ([]string, error) {
					next, err := loadAccess(src, s.access, s.log)
					if err != nil {
						return nil, err
					}
					before := s.access
					s.access = next
					s.web.use(next.clientCAs)
					err = server.SetBackends(ctx, s.backends()) // first, since Use ends the listeners that are in their place
					server.Use(next.directory)
					before.sources.closeBut(next.sources)
					if err != nil {
						return nil, err
					}
					return append(next.warnings, program.NeedsRestart(config.Fixed(cfg, next.cfg))...), nil
				}},
				{Name: "certificates, site and key", Do: func(context.Context) ([]string, error) {
					// It is only checked: the certificate is read again when it has changed, and the rest at a restart.
					web, _, warnings, problems := loadFront(s.access, s.log)
					web.close()
					return warnings, problems.Err()
				}},
				{Name: "audit log", Do: func(context.Context) ([]string, error) { return nil, record.reopen() }},
			},
		}
	}
	return job, nil
}

// setup is a server as the user described it.
type setup struct {
	*access
	web      *web
	key      *ecdh.PrivateKey // nil: nobody can seal
	log      *slog.Logger
	warnings []string
}

// access is who may connect and what each may do, as the user described it.
type access struct {
	cfg       *config.Server
	directory *auth.Directory
	clientCAs *auth.ClientCAs // nil: no client shows a certificate
	sources   keySources
	warnings  []string
}

// load reads what the user said of the server, and the files that it names. An error is
// everything that is wrong. What it returns is to be closed.
func load(src config.Sources, stderr io.Writer) (*setup, error) {
	cfg, warnings, err := config.LoadServer(src)
	problems := program.Problems(err)
	s := &setup{log: program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)}
	var wrong config.Problems
	s.access, wrong = newAccess(cfg, nil, s.log)
	problems = append(problems, wrong...)
	var more []string
	s.web, s.key, more, wrong = loadFront(s.access, s.log)
	problems = append(problems, wrong...)
	s.warnings = slices.Concat(warnings, s.access.warnings, more)
	if err := problems.Err(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// loadAccess reads again who may connect, with the configuration. Keys that are fetched,
// and the names of tokens in a list, are taken over from before. An error is everything
// that is wrong.
func loadAccess(src config.Sources, before *access, log *slog.Logger) (*access, error) {
	cfg, warnings, err := config.LoadServer(src)
	problems := program.Problems(err)
	a, wrong := newAccess(cfg, before, log)
	if err := append(problems, wrong...).Err(); err != nil {
		a.sources.closeBut(before.sources)
		return nil, err
	}
	a.warnings = append(warnings, a.warnings...)
	return a, nil
}

// newAccess reads the files of cfg that say who may connect. before is nil for the first
// time.
func newAccess(cfg *config.Server, before *access, log *slog.Logger) (a *access, problems config.Problems) {
	if before == nil {
		before = new(access)
	}
	a = &access{cfg: cfg}
	clientCAs, warnings, problem := newClientCAs(cfg)
	if problem != nil {
		problems = append(problems, *problem)
	}
	issuers, sources, wrong := openIssuers(cfg, before.sources, log)
	problems = append(problems, wrong...)
	directory, more, wrong := newDirectory(cfg, before.directory, auth.DirectoryConfig{ClientCAs: clientCAs, Issuers: issuers})
	problems = append(problems, wrong...)
	a.clientCAs, a.sources, a.directory = clientCAs, sources, directory
	a.warnings = slices.Concat(warnings, more, program.Expiring(cfg.ClientCA), a.loose())
	return a, problems
}

// loose returns a warning for each file of who may connect that others can change, or read
// if it has a secret.
func (a *access) loose() (warnings []string) {
	files := a.files()
	if a.cfg.IdentitiesDir != "" {
		more, _ := config.IdentityFiles(a.cfg.IdentitiesDir) // whose error was told
		files = append(files, more...)
	}
	secret := []string{a.cfg.SecretFile, a.cfg.TokenFile} // the latter's reader has warned
	files = slices.DeleteFunc(files, func(file string) bool { return slices.Contains(secret, file) })
	return append(auth.Exposed(a.cfg.SecretFile), auth.Writable(files...)...)
}

// loadFront reads the files that everybody who connects meets: certificates, the site and
// the server's key.
func loadFront(a *access, log *slog.Logger) (w *web, key *ecdh.PrivateKey, warnings []string, problems config.Problems) {
	cfg := a.cfg
	w, problems = newWeb(cfg, a.clientCAs, log)
	key, warnings, err := newKey(cfg)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--key-file", What: err.Error(), Hint: "make one with culvert-server keygen"})
	}
	warnings = append(warnings, auth.Exposed(cfg.TLSKey)...)
	warnings = append(warnings, auth.Writable(cfg.ACMECA)...)
	warnings = append(warnings, exposedAudit(cfg.Audit)...)
	if cfg.TLSCert != cfg.ClientCA { // which was looked at
		warnings = append(warnings, program.Expiring(cfg.TLSCert)...)
	}
	return w, key, warnings, problems
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
func (a *access) files() []string {
	files := []string{a.cfg.File, a.cfg.IdentitiesDir, a.cfg.TokenFile, a.cfg.ClientCA, a.cfg.CRL}
	for _, issuer := range a.cfg.Issuers {
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
