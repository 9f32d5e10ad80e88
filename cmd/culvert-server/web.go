package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"culvert/auth"
	"culvert/cmd/internal/front"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

// web is the web server that strangers see.
type web struct {
	tls   *tls.Config  // nil: plain ws
	other http.Handler // nil: everything is not found

	fallback *front.Fallback // nil: none
	acme     *front.ACME     // nil: none
	acmeHTTP string          // host:port, "" for none
	cfg      *config.Server
	log      *slog.Logger

	clientCAs atomic.Pointer[auth.ClientCAs] // as they are now; nil: no client shows a certificate
	refusals  refusals
	changed   atomic.Pointer[tls.Config] // in place of tls, with the authorities of clients as they are now; nil: it is as it was
}

// newWeb reads the files that are named, and opens nothing else.
func newWeb(cfg *config.Server, clientCAs *auth.ClientCAs, log *slog.Logger) (w *web, problems config.Problems) {
	w = &web{cfg: cfg, log: log, acmeHTTP: cfg.ACMEHTTP}
	wrong := func(option, hint string, err error) {
		problems = append(problems, config.Problem{Key: "--" + option, What: err.Error(), Hint: hint})
	}
	changed := func(*tls.ClientHelloInfo) (*tls.Config, error) { return w.changed.Load(), nil }
	switch {
	case cfg.TLSCert != "" && cfg.TLSKey != "":
		cert, err := front.NewCertificate(cfg.TLSCert, cfg.TLSKey, program.KeyPair, log)
		if err != nil {
			problems = append(problems, program.Problems(err)...)
			break
		}
		w.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.Get, GetConfigForClient: changed}
	case len(cfg.ACMEDomains) > 0:
		w.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: changed}
		acme := front.ACMEConfig{Domains: cfg.ACMEDomains, Email: cfg.ACMEEmail, Directory: cfg.ACMEDirectory, Log: log}
		var err error
		if cfg.ACMECA != "" {
			if acme.Roots, err = program.Roots(cfg.ACMECA); err != nil {
				wrong("acme-ca", "give a PEM file with certificates", err)
			}
		}
		if acme.Cache, err = acmeCache(cfg); err != nil {
			wrong("acme-cache", "give it a directory", err)
			break
		}
		if w.acme, err = front.NewACME(acme); err != nil {
			wrong("acme-cache", "give it a directory that this user can write to", err)
			break
		}
		w.acme.Configure(w.tls)
	}
	if w.tls != nil && clientCAs != nil && cfg.ClientCert != "off" {
		w.tls.ClientCAs, w.tls.ClientAuth = clientCAs.Pool(), tls.VerifyClientCertIfGiven
		w.clientCAs.Store(clientCAs)
		if cfg.ClientCert == "require" {
			w.tls.ClientAuth, w.tls.VerifyConnection = tls.RequireAndVerifyClientCert, w.verify
		}
	}
	switch {
	case cfg.Site != "":
		var err error
		if w.other, err = front.Site(cfg.Site); err != nil {
			wrong("site", "give a directory", err)
		}
	case cfg.Fallback != nil:
		w.fallback = front.NewFallback(cfg.Fallback, log)
		w.other = w.fallback
	}
	return w, problems
}

// verify is asked in each handshake where certificates are required, also when a session
// is resumed. Where they are optional, one that is revoked is no credential, and its client
// is a stranger like any other, or has another credential.
func (w *web) verify(state tls.ConnectionState) error {
	err := w.clientCAs.Load().Verify(state.PeerCertificates)
	if err != nil && w.refusals.log() {
		w.log.Warn("client certificate refused", "reason", err)
	}
	return err
}

// refusals lets a log line pass once in 10 s.
type refusals struct {
	mu   sync.Mutex
	last time.Time
}

func (r *refusals) log() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.last.IsZero() && time.Since(r.last) < 10*time.Second {
		return false
	}
	r.last = time.Now()
	return true
}

// use takes what can change while the server runs: the authorities of clients, if it has
// any.
func (w *web) use(clientCAs *auth.ClientCAs) {
	if w.tls == nil || w.tls.ClientCAs == nil || clientCAs == nil {
		return
	}
	next := carrier.HardenTLS(w.tls.Clone()) // tickets go on to count: theirs are the keys of tls
	next.ClientCAs = clientCAs.Pool()
	w.clientCAs.Store(clientCAs)
	w.changed.Store(next)
}

// acmeCache is where certificates are kept that were got by ACME.
func acmeCache(cfg *config.Server) (string, error) {
	if cfg.ACMECache != "" {
		return cfg.ACMECache, nil
	}
	if state := os.Getenv("STATE_DIRECTORY"); state != "" { // systemd's, for StateDirectory=
		return filepath.Join(state, "acme"), nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "culvert", "acme"), err
}

// close ends what it has beside the server.
func (w *web) close() {
	if w.fallback != nil {
		w.fallback.Close()
	}
	if w.acme != nil {
		w.acme.Close()
	}
}

// run runs the server with what it has beside it.
func (w *web) run(ctx context.Context, server *tunnel.Server) error {
	if w.acme == nil {
		return server.Run(ctx)
	}
	beside, end := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer end()
	failed := make(chan error, 1)
	if w.acmeHTTP != "" {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", w.acmeHTTP) //nolint:forbidigo // no stream has to do with it
		if err != nil {
			return fmt.Errorf("%w at %s: %w", tunnel.ErrListen, w.acmeHTTP, err)
		}
		w.log.Info("listening for ACME", "address", ln.Addr().String())
		challenges := carrier.NewServer(carrier.ServerConfig{
			Handler:                      w.acme.HTTP(),
			MaxUnauthenticated:           w.cfg.MaxUnauthenticated,
			MaxUnauthenticatedPerAddress: w.cfg.MaxUnauthenticatedPerAddress,
			TrustedProxies:               w.cfg.TrustedProxies,
			Logger:                       w.log,
		})
		all.Go(func() {
			if err := challenges.Serve(beside, ln, nil); err != nil {
				failed <- err
			}
			end()
		})
	}
	all.Go(func() {
		if _, err := server.Addr(beside); err == nil {
			w.acme.Obtain(beside)
		}
	})
	err := server.Run(beside)
	end()
	all.Wait()
	select {
	case other := <-failed:
		return cmp.Or(err, other)
	default:
		return err
	}
}
