package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

// prepare makes the client that the user described.
func prepare(src config.Sources, stdin io.Reader, stderr io.Writer) (*program.Job, error) {
	cfg, sealing, warnings, err := loadSealed(src, stderr)
	if err != nil {
		return nil, err
	}
	if len(cfg.Local)+len(cfg.Remote) == 0 {
		warnings = append(warnings, "there is no forward, so nothing can use this tunnel; give -L or -R")
	}
	client, err := tunnel.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	run := client.Run
	if sealing != nil {
		run = func(ctx context.Context) error {
			for _, server := range cfg.Servers {
				if err := sealing.meet(ctx, server, client.ServerKey, stdin, stderr); err != nil {
					return err
				}
			}
			return client.Run(ctx)
		}
	}
	return &program.Job{Run: run, Log: cfg.Logger, Warnings: warnings}, nil
}

// load reads what the user said of the client, and looks at the files that it names.
func load(src config.Sources, stderr io.Writer) (tunnel.ClientConfig, []string, error) {
	loaded, _, warnings, err := loadSealed(src, stderr)
	return loaded, warnings, err
}

// loadSealed is load that also returns how links are sealed, nil if they are not.
func loadSealed(src config.Sources, stderr io.Writer) (loaded tunnel.ClientConfig, sealing *sealing, warnings []string, err error) {
	cfg, warnings, err := config.LoadClient(src)
	if err != nil {
		return loaded, nil, nil, err
	}
	var problems config.Problems
	credential, more, err := newCredential(cfg)
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
	tlsConfig, wrong := newTLS(cfg)
	problems = append(problems, wrong...)
	pins, err := newPins(cfg)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-pin", What: err.Error()})
	}
	var seal func(*url.URL) (carrier.Seal, error)
	if cfg.Sealed() {
		sealing, more, wrong = newSealing(cfg)
		warnings = append(warnings, more...)
		problems = append(problems, wrong...)
		seal = sealing.seal
	}
	if len(problems) > 0 {
		return loaded, nil, nil, problems
	}
	warnings = append(warnings, auth.Exposed(cfg.SecretFile, cfg.HeaderFile, cfg.TLSKey)...)

	log := program.NewLogger(stderr, cfg.LogFormat, cfg.LogLevel)
	return tunnel.ClientConfig{
		Servers: cfg.Servers, RandomOrder: cfg.ServerOrder == "random", DialAddress: cfg.DialAddress, Proxy: cfg.Proxy,
		Carrier: carrier.Mode(cfg.Carrier), Header: cfg.Header, SecretHeader: header, Credential: credential,
		Seal: seal, TLS: tlsConfig, Pins: pins, AllowPlaintext: cfg.AllowPlaintext,
		Local: forwards(cfg.Local), Remote: forwards(cfg.Remote),
		RetryInitial: cfg.RetryInitial, MaxBackoff: cfg.MaxBackoff,
		HeartbeatMin: cfg.HeartbeatMin, HeartbeatMax: cfg.HeartbeatMax, MaxCarrierAge: cfg.MaxCarrierAge,
		StateFile: stateFile(cfg, log),
		Settings:  program.Settings(cfg.Settings, log),
	}, sealing, warnings, nil
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

// newCredential returns what gives the client its credential, nil for none. A file is
// read now, to tell what is wrong with it, and again at each dial.
func newCredential(cfg *config.Client) (credential func() (string, error), warnings []string, err error) {
	switch {
	case cfg.User != "":
		password := func() (string, []string, error) {
			return cfg.Password.Reveal(), nil, auth.CheckPassword(cfg.Password.Reveal())
		}
		if cfg.PasswordFile != "" {
			password = func() (string, []string, error) { return auth.ReadPassword(cfg.PasswordFile) }
		}
		if _, warnings, err = password(); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) {
			text, _, err := password()
			return carrier.Basic(cfg.User, text), err
		}
	case cfg.TokenFile != "":
		if _, warnings, err = auth.ReadToken(cfg.TokenFile); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) {
			token, _, err := auth.ReadToken(cfg.TokenFile)
			return token, err
		}
	case !cfg.Token.Empty():
		if _, warnings, err = auth.NewTokens(auth.Policy{}, cfg.Token.Reveal()); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) { return cfg.Token.Reveal(), nil }
	}
	return credential, warnings, nil
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
		f, err := os.Open(cfg.HeaderFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		content, err := io.ReadAll(io.LimitReader(f, maxHeaderFile+1))
		if err != nil {
			return nil, err
		}
		if len(content) > maxHeaderFile {
			return nil, fmt.Errorf("%s: is larger than %s", cfg.HeaderFile, config.Size(maxHeaderFile))
		}
		return config.ParseHeaderFile(cfg.HeaderFile, content)
	}
	_, err = read()
	return read, err
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
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
			return &cert, err
		}
		if _, err := load(); err != nil {
			problems = append(problems, config.Problem{Key: "--tls-cert", What: err.Error(),
				Hint: "give --tls-cert and --tls-key PEM files that belong together"})
		}
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
