package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"culvert/auth"
	"culvert/auth/textfile"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

// prepare makes the client that the user described.
func prepare(src config.Sources, stdin io.Reader, stderr io.Writer) (*program.Job, error) {
	life, end := context.WithCancel(context.Background())
	s, err := load(life, src, stderr)
	if err != nil {
		end()
		return nil, err
	}
	client, err := tunnel.NewClient(s.client)
	if err != nil {
		end()
		return nil, err
	}
	run := func(ctx context.Context) error {
		defer context.AfterFunc(ctx, end)()
		if err := s.meet(ctx, client, stdin, stderr); err != nil {
			return err
		}
		return client.Run(ctx)
	}
	job := &program.Job{
		Run: run, Log: s.client.Logger, Warnings: append(s.warnings, idle(s.client)...), Memory: int64(s.cfg.Memory), Close: end,
	}
	if s.cfg.File != "" {
		job.Reload = &program.Reload{
			Files: func() []string { return []string{s.cfg.File} },
			Parts: []program.Part{{Do: func(ctx context.Context) ([]string, error) {
				next, err := load(life, src, stderr)
				if err != nil {
					return nil, err
				}
				if err := client.SetForwards(ctx, next.client.Local, next.client.Remote); err != nil {
					return nil, err
				}
				return slices.Concat(next.warnings, idle(next.client), program.NeedsRestart(config.Fixed(s.cfg, next.cfg))), nil
			}}},
		}
	}
	return job, nil
}

// idle is a warning if the client has nothing to do.
func idle(cfg tunnel.ClientConfig) []string {
	if len(cfg.Local)+len(cfg.Remote) > 0 {
		return nil
	}
	return []string{"there is no forward, so nothing can use this tunnel; give -L or -R"}
}

// setup is a client as the user described it.
type setup struct {
	cfg      *config.Client
	client   tunnel.ClientConfig
	sealing  *sealing // nil: links are not sealed
	warnings []string
}

// meet learns the keys of servers that are not known yet, if links are to be sealed.
func (s *setup) meet(ctx context.Context, client *tunnel.Client, stdin io.Reader, stderr io.Writer) error {
	if s.sealing == nil {
		return nil
	}
	for _, server := range s.client.Servers {
		if err := s.sealing.meet(ctx, server, client.ServerKey, stdin, stderr); err != nil {
			return err
		}
	}
	return nil
}

// load reads what the user said of the client, and looks at the files that it names.
// What gives the credential ends with ctx.
func load(ctx context.Context, src config.Sources, stderr io.Writer) (*setup, error) {
	cfg, warnings, err := config.LoadClient(src)
	if err != nil {
		return nil, err
	}
	var problems config.Problems
	credential, more, err := newCredential(ctx, cfg, stderr)
	if err != nil && cfg.User != "" {
		problems = append(problems, config.Problem{Key: "password", What: err.Error(),
			Hint: "check --password-file, CULVERT_PASSWORD or wherever it is given"})
	} else if err != nil {
		problems = append(problems, program.BadCredential(err))
	}
	warnings = append(warnings, more...)
	header, err := newHeader(cfg)
	if err != nil {
		problems = append(problems, headerProblems(err)...)
	}
	header, more, err = withFront(cfg, header)
	if err != nil {
		problems = append(problems, config.Problem{Key: "front-password", What: err.Error(),
			Hint: "check --front-password-file, CULVERT_FRONT_PASSWORD or wherever it is given"})
	}
	warnings = append(warnings, more...)
	tlsConfig, wrong := newTLS(cfg)
	problems = append(problems, wrong...)
	pins, err := newPins(cfg)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-pin", What: err.Error()})
	}
	var sealing *sealing
	var seal func(*url.URL) (carrier.Seal, error)
	if cfg.Sealed() {
		sealing, more, wrong = newSealing(cfg)
		warnings = append(warnings, more...)
		problems = append(problems, wrong...)
		seal = sealing.seal
	}
	if len(problems) > 0 {
		return nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile, cfg.HeaderFile, cfg.TLSKey)...)
	if cfg.File != cfg.SecretFile {
		warnings = append(warnings, auth.Writable(cfg.File)...)
	}
	warnings = append(warnings, auth.Writable(cfg.TLSCA)...)
	warnings = append(warnings, program.Expiring(cfg.TLSCert)...)

	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	client := tunnel.ClientConfig{
		Servers: cfg.Servers, RandomOrder: cfg.ServerOrder == "random", DialAddress: cfg.DialAddress, Proxy: cfg.Proxy,
		Carrier: carrier.Mode(cfg.Carrier), Header: cfg.Header, SecretHeader: header, Credential: credential, CredentialLater: cfg.TokenCommand != "",
		Seal: seal, TLS: tlsConfig, Pins: pins, AllowPlaintext: cfg.AllowPlaintext,
		Local: forwards(cfg.Local), Remote: forwards(cfg.Remote),
		RetryInitial: cfg.RetryInitial, MaxBackoff: cfg.MaxBackoff,
		HeartbeatMin: cfg.HeartbeatMin, HeartbeatMax: cfg.HeartbeatMax, MaxCarrierAge: cfg.MaxCarrierAge,
		StateFile: stateFile(cfg, log),
		Settings:  program.Settings(cfg.Settings, log),
	}
	return &setup{cfg, client, sealing, warnings}, nil
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

// maxHeaderFile bounds a file of request headers in bytes.
const maxHeaderFile = 64 << 10

// newHeader returns what reads the file of request headers, nil if there is none. It
// is read now, to tell what is wrong with it, and again at each dial.
func newHeader(cfg *config.Client) (read func() (http.Header, error), err error) {
	if cfg.HeaderFile == "" {
		return nil, nil
	}
	read = func() (http.Header, error) {
		content, err := textfile.Read(cfg.HeaderFile, maxHeaderFile)
		if err != nil {
			return nil, err
		}
		return config.ParseHeaderFile(cfg.HeaderFile, content)
	}
	_, err = read()
	return read, err
}

// withFront adds the credential for a reverse proxy in front of the server to what read
// returns, which may be nil. Its password is read now, to tell what is wrong with it, and
// again at each dial.
func withFront(cfg *config.Client, read func() (http.Header, error)) (more func() (http.Header, error), warnings []string, err error) {
	if cfg.FrontUser == "" {
		return read, nil, nil
	}
	password := func() (string, []string, error) {
		if cfg.FrontPasswordFile != "" {
			return auth.ReadPassword(cfg.FrontPasswordFile)
		}
		return cfg.FrontPassword.Reveal(), nil, auth.CheckPassword(cfg.FrontPassword.Reveal())
	}
	if _, warnings, err = password(); err != nil {
		return read, nil, err
	}
	return func() (http.Header, error) {
		header := http.Header{}
		if read != nil {
			given, err := read()
			if err != nil {
				return nil, err
			}
			maps.Copy(header, given)
		}
		text, _, err := password()
		if err != nil {
			return nil, err
		}
		header.Set("Authorization", carrier.Basic(cfg.FrontUser, text))
		return header, nil
	}, warnings, nil
}

// headerProblems is what newHeader complains of.
func headerProblems(err error) config.Problems {
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return problems
	}
	return config.Problems{{Key: "--header-file", What: err.Error(), Hint: "give a file with NAME: VALUE, one a line"}}
}

// newTLS returns the client's TLS settings. The client's certificate is read now, to
// tell what is wrong with it, and again whenever a server asks for it.
func newTLS(cfg *config.Client) (*tls.Config, config.Problems) {
	var problems config.Problems
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         cfg.TLSServerName,
		InsecureSkipVerify: cfg.TLSInsecureSkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
	if cfg.TLSMinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	if cfg.TLSCert != "" {
		load := func() (*tls.Certificate, error) { return program.KeyPair(cfg.TLSCert, cfg.TLSKey) }
		_, err := load()
		problems = append(problems, program.Problems(err)...)
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	if cfg.TLSCA != "" {
		var err error
		if c.RootCAs, err = program.Roots(cfg.TLSCA); err != nil {
			problems = append(problems, config.Problem{Key: "--tls-ca", What: err.Error(), Hint: "give a PEM file with certificates"})
		}
	}
	return c, problems
}

func newPins(cfg *config.Client) ([]carrier.Pin, error) {
	var pins []carrier.Pin
	for _, text := range cfg.TLSPins {
		pin, err := carrier.ParsePin(text)
		if err != nil {
			return nil, err
		}
		pins = append(pins, pin)
	}
	return pins, nil
}

func forwards(list []config.Forward) []tunnel.Forward {
	var converted []tunnel.Forward
	for _, f := range list {
		converted = append(converted, tunnel.Forward(f))
	}
	return converted
}
