package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/net/idna"
)

// ACMEConfig is what an ACME is made of.
type ACMEConfig struct {
	Domains   []string       // that certificates are for; at least one
	Email     string         // where the authority writes to; "" for none
	Cache     string         // directory of the account's key and the certificates
	Directory string         // URL of the authority; "" for Let's Encrypt
	Roots     *x509.CertPool // to verify the authority's own certificate; nil: the system's
	Log       *slog.Logger
}

// ACME gets certificates from an authority that speaks ACME (RFC 8555), and new ones
// before they expire. Whoever uses it accepts the authority's terms. It is made by
// NewACME.
type ACME struct {
	domains   []string
	manager   *autocert.Manager
	transport *http.Transport
	reasons   *reasons
	log       *slog.Logger

	mu     sync.Mutex // guards the following, which have elements for our domains only
	failed map[string]time.Time
	slots  map[string]chan struct{}
}

// NewACME makes the directory of the cache, mode 0700, if it is not there. Its error
// is about that.
func NewACME(cfg ACMEConfig) (*ACME, error) {
	if err := os.MkdirAll(cfg.Cache, 0o700); err != nil {
		return nil, err
	}
	if err := writable(cfg.Cache); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     30 * time.Second,
	}
	reasons := &reasons{over: transport}
	return &ACME{
		domains:   cfg.Domains,
		transport: transport,
		reasons:   reasons,
		log:       cfg.Log,
		failed:    make(map[string]time.Time),
		slots:     make(map[string]chan struct{}),
		manager: &autocert.Manager{
			Prompt:     autocert.AcceptTOS,
			Cache:      autocert.DirCache(cfg.Cache),
			HostPolicy: autocert.HostWhitelist(cfg.Domains...),
			Email:      cfg.Email,
			Client: &acme.Client{
				DirectoryURL: cmp.Or(cfg.Directory, autocert.DefaultACMEDirectory),
				HTTPClient:   &http.Client{Transport: reasons, Timeout: time.Minute},
				UserAgent:    "culvert",
			},
		},
	}, nil
}

// writable finds out before anything is asked of the authority, which counts.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".write-")
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(f.Name())
}

// Configure makes cfg, of a server, use the certificates, and answer the challenge
// TLS-ALPN-01 (RFC 8737), which is made at the server's own port. The authority has no
// client certificate to show, and no other client learns of its protocol.
func (a *ACME) Configure(cfg *tls.Config) {
	challenge := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acme.ALPNProto}, GetCertificate: a.manager.GetCertificate}
	before := cfg.GetConfigForClient
	cfg.GetCertificate = a.Get
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Equal(hello.SupportedProtos, challenge.NextProtos):
			return challenge, nil
		case before != nil:
			return before(hello)
		}
		return nil, nil
	}
}

// Get is the GetCertificate of a tls.Config. The first time for a domain it waits for
// the authority, but not for longer than the handshake may last. The log has an error
// for each domain once a minute at most.
func (a *ACME) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(hello.Context(), handshakePatience)
	defer cancel()
	return a.get(ctx, hello.ServerName)
}

// handshakePatience is how long a handshake waits for the authority: as long as servers
// give it by default.
const handshakePatience = 10 * time.Second

// get returns the certificate for a domain, or ctx's error. autocert knows no context
// and may take minutes, so one at a time asks it for a domain.
func (a *ACME) get(ctx context.Context, name string) (*tls.Certificate, error) {
	domain, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	if err != nil {
		return nil, err
	}
	if err := a.manager.HostPolicy(ctx, domain); err != nil {
		return nil, err
	}
	slot := a.slot(domain)
	select {
	case slot <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	type answer struct {
		cert *tls.Certificate
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-slot }()
		// The same for all: strangers do not choose what the authority is asked for.
		cert, err := a.manager.GetCertificate(&tls.ClientHelloInfo{
			ServerName: domain, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		})
		if err != nil && a.seldom(domain) {
			a.log.Error("no certificate", "domain", domain, "error", oneLine(err), "reason", strings.Join(strings.Fields(a.reasons.take()), " "),
				"note", "the domain has to lead here: port 443, or port 80 with --acme-http")
		}
		answered <- answer{cert, err}
	}()
	select {
	case a := <-answered:
		return a.cert, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// slot is taken by who asks autocert for a domain, which is one of ours.
func (a *ACME) slot(domain string) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot, ok := a.slots[domain]
	if !ok {
		slot = make(chan struct{}, 1)
		a.slots[domain] = slot
	}
	return slot
}

func (a *ACME) seldom(domain string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.failed[domain]; ok && time.Since(last) < time.Minute {
		return false
	}
	a.failed[domain] = time.Now()
	return true
}

// HTTP answers the challenge HTTP-01, which is then tried beside TLS-ALPN-01. The
// authority asks at port 80. Everything else is redirected to https.
func (a *ACME) HTTP() http.Handler {
	answer := a.manager.HTTPHandler(nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, err := net.SplitHostPort(r.Host); err == nil {
			r.Host = host // whatever port is led here
		}
		answer.ServeHTTP(w, r)
	})
}

// Obtain gets the certificates that are not in the cache, so that the first client
// does not have to wait, and what is wrong is in the log at once. It returns when ctx
// has ended or there is a certificate for each domain, or none to be had. The server
// must be listening.
func (a *ACME) Obtain(ctx context.Context) {
	for _, domain := range a.domains {
		cert, err := a.get(ctx, domain)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.log.Info("certificate ready", "domain", domain, "valid_until", cert.Leaf.NotAfter)
		}
	}
}

// Close ends the connections to the authority that nobody uses at the moment.
func (a *ACME) Close() { a.transport.CloseIdleConnections() }

// oneLine keeps what an authority says on one line.
func oneLine(err error) string {
	return strings.Join(strings.Fields(fmt.Sprint(err)), " ")
}
