package carrier_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

// resumer is a TLS server and a client that keeps tickets.
type resumer struct {
	dialer *carrier.Dialer
	conns  chan *carrier.Conn

	mu      sync.Mutex
	states  []tls.ConnectionState // of the client's handshakes
	refuse  error                 // what the server's Authenticate says
	subject []string              // of the client certificates that it sees
}

func newResumer(t *testing.T, version uint16, mode carrier.Mode) *resumer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, pool := carriertest.Certificate(t)
	r := &resumer{conns: make(chan *carrier.Conn, 1)}
	ctx := t.Context()
	done := make(chan error, 1)
	go func() {
		done <- carrier.NewServer(carrier.ServerConfig{Handler: &carrier.Handler{
			Authenticate: func(req *http.Request) (carrier.Client, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				for _, cert := range req.TLS.PeerCertificates {
					r.subject = append(r.subject, cert.Subject.CommonName)
				}
				return carrier.Client{}, r.refuse
			},
			Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Attach: func(c *carrier.Conn) { r.conns <- c }}, nil
			},
		}}).Serve(ctx, ln, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	}()
	t.Cleanup(func() { // after t.Context has ended
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.dialer = &carrier.Dialer{
		URL: &url.URL{Scheme: "wss", Host: ln.Addr().String()}, Mode: mode,
		TLS: &tls.Config{
			RootCAs: pool, MaxVersion: version, Certificates: []tls.Certificate{cert},
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
			VerifyConnection: func(state tls.ConnectionState) error {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.states = append(r.states, state)
				return nil
			},
		},
	}
	return r
}

// refused makes the server refuse, or not.
func (r *resumer) refused(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = err
}

// dial makes a carrier and returns whether a handshake was shorter. The carrier lasts
// as long as the test: what ends in the middle of a handshake loses its ticket.
func (r *resumer) dial(t *testing.T) (resumed bool) {
	t.Helper()
	r.mu.Lock()
	r.states, r.subject = nil, nil
	r.mu.Unlock()
	client, _, err := r.dialer.Dial(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := <-r.conns
	t.Cleanup(func() { abort(client, server) })
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.states, func(s tls.ConnectionState) bool { return s.DidResume })
}

// The second dial to a server resumes its TLS session, whatever carries it, and the
// server still sees the client's certificate.
func TestRedialResumesTLS(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(string(mode)+" "+tls.VersionName(version), func(t *testing.T) {
				r := newResumer(t, version, mode)
				if resumed := r.dial(t); resumed && mode == carrier.ModeWebSocket {
					t.Error("the first dial resumes")
				}
				for range 3 {
					if !r.dial(t) {
						t.Error("a redial does not resume")
					}
					r.mu.Lock()
					if len(r.subject) == 0 || r.subject[0] != r.states[0].PeerCertificates[0].Subject.CommonName {
						t.Errorf("the server sees the certificates %q", r.subject)
					}
					r.mu.Unlock()
				}
			})
		}
	}
}

// What is asked of a server's certificate is asked again when it is not shown again.
func TestResumedTLSIsChecked(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := newResumer(t, version, carrier.ModeWebSocket)
		r.dial(t)
		cert := r.states[0].PeerCertificates[0]

		pinned := *r.dialer
		pinned.Pins = []carrier.Pin{carrier.PinOf(cert)}
		resumed := false
		pinned.TLS = pinned.TLS.Clone()
		pinned.TLS.VerifyConnection = func(state tls.ConnectionState) error {
			resumed = state.DidResume
			return nil
		}
		client, _, err := pinned.Dial(t.Context(), nil)
		if err != nil || !resumed {
			t.Fatal(err, resumed)
		}
		abort(client, <-r.conns)

		resumed = false
		pinned.Pins = []carrier.Pin{{1}}
		_, _, err = pinned.Dial(t.Context(), nil)
		if _, ok := errors.AsType[*carrier.PinError](err); !ok || !resumed {
			t.Errorf("%s: another pin: %v, resumed: %v", tls.VersionName(version), err, resumed)
		}

		r.dial(t)
		other := *r.dialer
		other.TLS = other.TLS.Clone()
		other.TLS.RootCAs = x509.NewCertPool()
		_, _, err = other.Dial(t.Context(), nil)
		if _, ok := errors.AsType[*carrier.CertificateError](err); !ok {
			t.Errorf("%s: another authority: %v", tls.VersionName(version), err)
		}
	}
}

// A client that was refused shows its certificate again: it may have a new one.
func TestRefusedDialForgetsTLS(t *testing.T) {
	r := newResumer(t, tls.VersionTLS13, carrier.ModeWebSocket)
	r.dial(t)
	r.refused(errWrongToken)
	if _, _, err := r.dialer.Dial(t.Context(), nil); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Fatal(err)
	}
	r.refused(nil)
	if r.dial(t) {
		t.Error("resumes")
	}
}
