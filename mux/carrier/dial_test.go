package carrier_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func token(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// phaseOf fails unless err is a DialError of phase.
func phaseOf(t *testing.T, err error, phase carrier.Phase) {
	t.Helper()
	dialErr, ok := errors.AsType[*carrier.DialError](err)
	if !ok || dialErr.Phase != phase || dialErr.Addr == "" {
		t.Errorf("got %v (%T), want a DialError of phase %s", err, err, phase)
	}
}

func TestDialRefused(t *testing.T) {
	long := strings.Repeat("x", 5000)
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    carrier.RefusedError
		is      error
		text    string
	}{
		{"401", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "Unauthorized", 401)
		}, carrier.RefusedError{Status: 401, Body: "Unauthorized"}, carrier.ErrUnauthorized, "answered 401 Unauthorized"},
		{"403 of a proxy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "squid")
			http.Error(w, "no", 403)
		}, carrier.RefusedError{Status: 403, Server: "squid", Body: "no"}, nil, `answered 403 Forbidden from "squid": "no"`},
		{"404", http.NotFound, carrier.RefusedError{Status: 404, Body: "404 page not found"}, carrier.ErrNotCulvert, `answered 404 Not Found for the path "/": "404 page not found": not a culvert server`},
		{"302", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://login.example/")
			w.WriteHeader(302)
		}, carrier.RefusedError{Status: 302, Location: "https://login.example/"}, carrier.ErrNotCulvert, `redirected to "https://login.example/"`},
		{"200", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "hello")
		}, carrier.RefusedError{Status: 200, Body: "hello"}, carrier.ErrNotCulvert, "not a culvert server"},
		{"502", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "nginx")
			w.WriteHeader(502)
		}, carrier.RefusedError{Status: 502, Server: "nginx"}, nil, "answered 502 Bad Gateway"},
		{"refusal", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Culvert-Refusal", "gone")
			http.Error(w, "session expired", 410)
		}, carrier.RefusedError{Status: 410, Token: "gone", Body: "session expired"}, nil, `refusal "gone"`},
		{"the credential said back", func(w http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"Location", "Server", "Culvert-Refusal"} {
				w.Header().Set(name, "/?"+r.Header.Get("Authorization"))
			}
			http.Error(w, strings.Repeat("-", 197)+r.Header.Get("Authorization")[7:], 500)
		}, carrier.RefusedError{
			Status: 500, Token: "/?Bearer [credential]", Location: "/?Bearer [credential]", Server: "/?Bearer [credential]",
			Body: strings.Repeat("-", 197) + "[cr",
		}, nil, "answered 500 Internal Server Error"},
		{"endless body", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, long); err != nil {
					return
				}
			}
		}, carrier.RefusedError{Status: 200, Body: long[:200]}, carrier.ErrNotCulvert, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.handler)
			defer srv.Close()
			d := carrier.Dialer{URL: parseURL(t, srv.URL), Credential: token("secret")}
			c, _, err := d.Dial(t.Context(), nil)
			if err == nil {
				c.Abort(nil)
				t.Fatal("dialled")
			}
			phaseOf(t, err, carrier.PhaseUpgrade)
			got, ok := errors.AsType[*carrier.RefusedError](err)
			if !ok {
				t.Fatalf("%v is no RefusedError", err)
			}
			tt.want.Path = "/"
			if *got != tt.want {
				t.Errorf("got %+v, want %+v", *got, tt.want)
			}
			for _, target := range []error{carrier.ErrUnauthorized, carrier.ErrNotCulvert} {
				if errors.Is(err, target) != (tt.is == target) {
					t.Errorf("%v: is %v: %t", err, target, errors.Is(err, target))
				}
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%q does not say %q", err, tt.text)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%q tells the credential", err)
			}
		})
	}
}

// A server that says the credential back, whole or in part, gets it into no log.
func TestDialRefusedHidesCredential(t *testing.T) {
	tests := []struct {
		name          string
		authorization string
		secret        string
		before, after string // in the body
		want          string
	}{
		{"token", "Bearer sesame", "sesame", "not ", "!", "not [credential]!"},
		{"other scheme", "Basic  sesame", "sesame", "not ", "!", "not [credential]!"},
		{"no scheme", "sesame", "sesame", "not ", "!", "not [credential]!"},
		{"at the end", "Bearer sesame", "sesame", "not ", "", "not [credential]"},
		{"longer than what is read", "Bearer " + strings.Repeat("sesame", 200), strings.Repeat("sesame", 200), "not ", "!", "not"},
		{"cut", "Bearer " + strings.Repeat("sesame", 150), strings.Repeat("sesame", 150), strings.Repeat("-", 125), "!", strings.Repeat("-", 125)},
		{"short and complete", "Bearer tesame", "", "no way out", "", "no way out"},
		{"nothing of it", "Bearer sesame", "", strings.Repeat("s", 1024), "", strings.Repeat("s", 200)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(500)
				_, _ = io.WriteString(w, tt.before+tt.secret+tt.after)
			}))
			defer srv.Close()
			d := carrier.Dialer{URL: parseURL(t, srv.URL), Header: http.Header{"Authorization": {tt.authorization}}}
			_, _, err := d.Dial(t.Context(), nil)
			if refused, ok := errors.AsType[*carrier.RefusedError](err); !ok || refused.Body != tt.want {
				t.Errorf("got %v, want the body %q", err, tt.want)
			}
		})
	}
}

func TestDialDoesNotFollowRedirects(t *testing.T) {
	followed := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	defer other.Close()
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	d := carrier.Dialer{URL: parseURL(t, srv.URL), Credential: token("secret")}
	if _, _, err := d.Dial(t.Context(), nil); !errors.Is(err, carrier.ErrNotCulvert) {
		t.Error(err)
	}
	if followed {
		t.Error("the credential was taken to where the redirect led")
	}
}

// 101 answers that are not ours.
func TestDialNotCulvert(t *testing.T) {
	upgrade := func(hello string, protocols ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if hello != "" {
				w.Header().Set("Culvert-Hello", hello)
			}
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: protocols})
			if err != nil {
				return
			}
			_, _, _ = c.Read(r.Context())
			_ = c.CloseNow()
		}
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		phase   carrier.Phase
	}{
		{"no subprotocol", upgrade("AA"), carrier.PhaseHello},
		{"no hello", upgrade("", carrier.Subprotocol), carrier.PhaseHello},
		{"malformed hello", upgrade("A", carrier.Subprotocol), carrier.PhaseHello},
		{"oversized hello", upgrade(strings.Repeat("A", 1367), carrier.Subprotocol), carrier.PhaseHello},
		{"wrong subprotocol", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Sec-WebSocket-Protocol", "chat")
			upgrade("AA", "chat")(w, r)
		}, carrier.PhaseHello},
		{"wrong accept key", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
			upgrade("AA", carrier.Subprotocol)(hangUp{w}, r)
		}, carrier.PhaseUpgrade},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.handler)
			defer srv.Close()
			d := carrier.Dialer{URL: parseURL(t, srv.URL)}
			_, _, err := d.Dial(t.Context(), []byte("hello"))
			phaseOf(t, err, tt.phase)
			if !errors.Is(err, carrier.ErrNotCulvert) {
				t.Errorf("%v is not ErrNotCulvert", err)
			}
			if !strings.Contains(err.Error(), "it answers 101") {
				t.Errorf("%q does not say what answered", err)
			}
		})
	}
}

// hangUp closes the connection once it is upgraded.
type hangUp struct{ http.ResponseWriter }

func (w hangUp) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		conn.Close()
	}
	return conn, rw, err
}

// answering returns the address of a server that says the same to everybody who
// connects, whatever they say, and then waits for them to leave.
func answering(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, answer)
			if answer == "" {
				_, _ = bufio.NewReader(conn).ReadByte()
				conn.Close()
				continue
			}
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

func TestDialSomethingElse(t *testing.T) {
	ssh := answering(t, "SSH-2.0-OpenSSH_9.9\r\n")
	_, _, err := (&carrier.Dialer{URL: parseURL(t, "ws://"+ssh)}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseUpgrade)
	if !errors.Is(err, carrier.ErrNotCulvert) || !strings.Contains(err.Error(), "SSH-2.0") {
		t.Error(err)
	}

	_, _, err = (&carrier.Dialer{URL: parseURL(t, "wss://"+ssh)}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseTLS)
	if !errors.Is(err, carrier.ErrNotCulvert) {
		t.Error(err)
	}

	_, _, err = (&carrier.Dialer{URL: parseURL(t, "ws://"+answering(t, ""))}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseUpgrade)
	if carrier.Permanent(err) {
		t.Errorf("a cut during the upgrade is permanent: %v", err)
	}
	if !errors.Is(err, io.EOF) || !strings.HasSuffix(err.Error(), ": connection closed without an answer: EOF") {
		t.Errorf("a cut during the upgrade: %v", err)
	}

	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = discardLog()
	secure.StartTLS()
	defer secure.Close()
	_, _, err = (&carrier.Dialer{URL: parseURL(t, strings.Replace(secure.URL, "https", "ws", 1))}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseUpgrade)
	if use, ok := errors.AsType[*carrier.SchemeError](err); !ok || use.Use != "wss" || !carrier.Permanent(err) {
		t.Error(err)
	}
}

// A front that speaks HTTP/2 only is called that, whichever kind of carrier is wanted,
// and trying again does not help.
func TestDialHTTP2Only(t *testing.T) {
	const settings = "\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80\x00\x04\x00\x01\x00\x00\x00\x05\x00\xff\xff\xff"
	const goAway = "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	cert, pool := carriertest.Certificate(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"grpc-exp"}}) // Go allows clients without ALPN for h2
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: discardLog()}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	defer func() {
		_ = srv.Close()
		<-served
	}()
	for name, server := range map[string]string{
		"SETTINGS": "ws://" + answering(t, settings), "GOAWAY": "ws://" + answering(t, goAway), "TLS": "wss://" + ln.Addr().String(),
	} {
		for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP, carrier.ModeAuto} {
			d := carrier.Dialer{URL: parseURL(t, server), Mode: mode, TLS: &tls.Config{RootCAs: pool}}
			_, _, err := d.Dial(t.Context(), nil)
			_, inspectErr := d.Inspect(t.Context())
			for _, err := range []error{err, inspectErr} {
				if !errors.Is(err, carrier.ErrHTTP2Only) || !carrier.Permanent(err) || strings.Contains(err.Error(), `\x`) {
					t.Errorf("%s, %s: %v", name, mode, err)
				}
			}
		}
	}
	proxy := &fakeProxy{addr: answering(t, settings)}
	d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(proxy.url("http", false))}
	if err := refusedBy(t, d); !errors.Is(err, carrier.ErrHTTP2Only) || !carrier.Permanent(err) {
		t.Errorf("a proxy: %v", err)
	}
}

// What the form of a request is refused for says nothing about who refuses it.
func TestDialRefusedForm(t *testing.T) {
	for _, status := range []int{400, 411, 413, 414, 417, 431} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeAuto} {
			d := carrier.Dialer{URL: parseURL(t, srv.URL), Mode: mode, Ladder: new(carrier.Ladder)}
			_, _, err := d.Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseUpgrade)
			if errors.Is(err, carrier.ErrNotCulvert) || !carrier.Permanent(err) {
				t.Errorf("%d, %s: %v", status, mode, err)
			}
		}
		srv.Close()
	}
}

// Of two errors the one is returned that says more about whether trying again helps.
func TestTelling(t *testing.T) {
	passing, final := errors.New("cut"), error(carrier.ErrNotCulvert)
	of := func(status int, token string) error { return &carrier.RefusedError{Status: status, Token: token} }
	for _, tt := range []struct{ first, second, want error }{
		{passing, passing, passing},
		{final, passing, passing},
		{passing, final, passing},
		{final, carrier.ErrHTTP2Only, final},
		{final, of(401, ""), of(401, "")},
		{of(503, "limit"), passing, of(503, "limit")},
		{passing, of(503, "limit"), of(503, "limit")},
	} {
		if got := carrier.Telling(tt.first, tt.second); got.Error() != tt.want.Error() {
			t.Errorf("of %v and %v: %v, want %v", tt.first, tt.second, got, tt.want)
		}
	}
}

func TestDialCertificate(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = discardLog()
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())

	_, _, err := (&carrier.Dialer{URL: parseURL(t, srv.URL)}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseTLS)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok || !carrier.Permanent(err) {
		t.Errorf("unknown authority: %v", err)
	}

	cfg := &tls.Config{RootCAs: pool, ServerName: "wrong.example"}
	_, _, err = (&carrier.Dialer{URL: parseURL(t, srv.URL), TLS: cfg}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseTLS)
	if _, ok := errors.AsType[x509.HostnameError](err); !ok || !carrier.Permanent(err) {
		t.Errorf("wrong name: %v", err)
	}

	// The right certificate reaches the handler.
	_, _, err = (&carrier.Dialer{URL: parseURL(t, srv.URL), TLS: &tls.Config{RootCAs: pool}}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseUpgrade)

	// Versions before 1.2 are not spoken, whatever the caller says.
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = discardLog()
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	defer old.Close()
	cfg = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	_, _, err = (&carrier.Dialer{URL: parseURL(t, old.URL), TLS: cfg}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseTLS)
	if cfg.MinVersion != tls.VersionTLS10 {
		t.Error("the caller's config was changed")
	}
}

// What a client offers: HTTP/1.1 only, and TLS from 1.2 or what the caller says on.
func TestDialClientHello(t *testing.T) {
	hellos := make(chan *tls.ClientHelloInfo, 1)
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = discardLog()
	srv.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		hellos <- hello
		return nil, errors.New("seen enough")
	}}
	srv.StartTLS()
	defer srv.Close()
	u := parseURL(t, srv.URL)
	u.Host = "localhost:" + u.Port()
	tests := []struct {
		name   string
		cfg    *tls.Config
		server string
		least  uint16
	}{
		{"none", nil, "localhost", tls.VersionTLS12},
		{"old", &tls.Config{MinVersion: tls.VersionTLS10, NextProtos: []string{"h2"}}, "localhost", tls.VersionTLS12},
		{"new", &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "a.example"}, "a.example", tls.VersionTLS13},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := (&carrier.Dialer{URL: u, TLS: tt.cfg}).Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseTLS)
			hello := <-hellos
			if hello.ServerName != tt.server || !slices.Equal(hello.SupportedProtos, []string{"http/1.1"}) {
				t.Errorf("asks %q for %q, want http/1.1 of %q", hello.ServerName, hello.SupportedProtos, tt.server)
			}
			if least := slices.Min(hello.SupportedVersions); least != tt.least {
				t.Errorf("speaks %s, want %s at least", tls.VersionName(least), tls.VersionName(tt.least))
			}
		})
	}
}

func TestDialNetworkErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, _, err = (&carrier.Dialer{URL: parseURL(t, "ws://"+ln.Addr().String())}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseConnect)
	if carrier.Permanent(err) {
		t.Error(err)
	}

	noSuchHost := func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "db.example", IsNotFound: true}}
	}
	_, _, err = (&carrier.Dialer{URL: parseURL(t, "wss://db.example"), NetDial: noSuchHost}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseResolve)
	if !strings.Contains(err.Error(), "db.example:443") {
		t.Error(err)
	}
}

// A dial ends with its context or its Timeout, in every phase.
func TestDialEnds(t *testing.T) {
	silent := func(scheme string, opts ...func(*carrier.Dialer)) *carrier.Dialer {
		ln, err := net.Listen("tcp", "127.0.0.1:0") // its backlog takes the connection
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		d := &carrier.Dialer{URL: parseURL(t, scheme+"://"+ln.Addr().String())}
		for _, o := range opts {
			o(d)
		}
		return d
	}
	errGivenUp := errors.New("given up")
	never := func(d *carrier.Dialer) {
		d.NetDial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, errGivenUp
		}
	}
	for phase, d := range map[carrier.Phase]*carrier.Dialer{
		carrier.PhaseConnect: silent("ws", never),
		carrier.PhaseTLS:     silent("wss"),
		carrier.PhaseUpgrade: silent("ws"),
	} {
		t.Run(string(phase), func(t *testing.T) {
			d.Timeout = 20 * time.Millisecond
			_, _, err := d.Dial(t.Context(), nil)
			phaseOf(t, err, phase)
			if !errors.Is(err, context.DeadlineExceeded) || carrier.Permanent(err) || !strings.Contains(err.Error(), "no answer in time") {
				t.Errorf("time-out: %v", err)
			}

			d.Timeout = time.Hour
			why := errors.New("not needed any more")
			ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, why)
			defer cancel()
			_, _, err = d.Dial(ctx, nil)
			phaseOf(t, err, phase)
			if !errors.Is(err, why) || d.NetDial != nil && !errors.Is(err, errGivenUp) {
				t.Errorf("context: %v", err)
			}
		})
	}
}

func TestDialTimeoutByDefault(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		near, far := carriertest.NewPath().Ends()
		defer far.Close()
		d := carrier.Dialer{URL: parseURL(t, "ws://localhost"), NetDial: given(near)}
		start := time.Now()
		if _, _, err := d.Dial(t.Context(), nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v, want a time-out after 10s", err, time.Since(start))
		}
	})
}

// given is a NetDial that always makes conn.
func given(conn net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return conn, nil }
}

// The address is that of the URL.
func TestDialAddress(t *testing.T) {
	for u, want := range map[string]string{
		"ws://a.example":           "a.example:80",
		"http://a.example/x":       "a.example:80",
		"wss://a.example":          "a.example:443",
		"https://a.example":        "a.example:443",
		"ws://a.example:81":        "a.example:81",
		"wss://[2001:db8::1]":      "[2001:db8::1]:443",
		"wss://[2001:db8::1]:8443": "[2001:db8::1]:8443",
	} {
		var got string
		d := carrier.Dialer{URL: parseURL(t, u), NetDial: func(_ context.Context, network, addr string) (net.Conn, error) {
			got = network + " " + addr
			return nil, net.ErrClosed
		}}
		_, _, err := d.Dial(t.Context(), nil)
		phaseOf(t, err, carrier.PhaseConnect)
		if got != "tcp "+want {
			t.Errorf("%s: dialled %q, want %q", u, got, want)
		}
	}
}

// A server cannot make a client read more than 16 KiB of header.
func TestDialEndlessHeader(t *testing.T) {
	answer := "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n"
	_, _, err := (&carrier.Dialer{URL: parseURL(t, "ws://"+answering(t, answer))}).Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseUpgrade)
	if refused, ok := errors.AsType[*carrier.RefusedError](err); ok {
		t.Errorf("the header was read: status %d", refused.Status)
	}
}

// The headers that are valid are those that net/http sends.
func TestValidateHeader(t *testing.T) {
	errSends := errors.New("it would be sent")
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, errSends }}
	headers := []http.Header{{"": {"v"}}, {"X": {}}, {"X": {""}}, {"X": {"v", " v "}}}
	for b := range 256 {
		c := string([]byte{byte(b)})
		headers = append(headers, http.Header{"X" + c: {"v"}}, http.Header{"X": {"v", "v" + c + "v"}})
	}
	for _, header := range headers {
		r, err := http.NewRequest("GET", "http://a.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = header
		_, err = transport.RoundTrip(r)
		sends := errors.Is(err, errSends)
		d := carrier.Dialer{URL: parseURL(t, "wss://a.example"), Header: header}
		if err := d.Validate(); (err == nil) != sends {
			t.Errorf("%q: %v, but net/http sends it: %t", header, err, sends)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		url    string
		dialer carrier.Dialer
		want   error
	}{
		{"loopback", "ws://127.0.0.1:80", carrier.Dialer{Credential: token("t")}, nil},
		{"loopback of IPv6", "ws://[::1]:80", carrier.Dialer{Credential: token("t")}, nil},
		{"localhost", "ws://LocalHost:80", carrier.Dialer{Credential: token("t")}, nil},
		{"wss", "wss://a.example", carrier.Dialer{Credential: token("t")}, nil},
		{"plaintext", "ws://a.example", carrier.Dialer{Credential: token("t")}, carrier.ErrPlaintextCredential},
		{"plaintext http", "http://a.example", carrier.Dialer{Credential: token("t")}, carrier.ErrPlaintextCredential},
		{"plaintext to an address", "ws://192.0.2.1", carrier.Dialer{Credential: token("t")}, carrier.ErrPlaintextCredential},
		{"looks like loopback", "ws://127.0.0.1.a.example", carrier.Dialer{Credential: token("t")}, carrier.ErrPlaintextCredential},
		{"looks like localhost", "ws://localhost.a.example", carrier.Dialer{Credential: token("t")}, carrier.ErrPlaintextCredential},
		{"allowed", "ws://a.example", carrier.Dialer{Credential: token("t"), AllowPlaintext: true}, nil},
		{"no credential", "ws://a.example", carrier.Dialer{}, nil},
		{"empty credential", "ws://a.example", carrier.Dialer{Credential: token("")}, nil},
		{"credential in the header", "ws://a.example", carrier.Dialer{Header: http.Header{"Authorization": {"Basic x"}}}, carrier.ErrPlaintextCredential},
		{"credential in small letters", "ws://a.example", carrier.Dialer{Header: http.Header{"authorization": {"Basic x"}}}, carrier.ErrPlaintextCredential},
		{"credential after an empty one", "ws://a.example", carrier.Dialer{Header: http.Header{"Authorization": {"", "Basic x"}}}, carrier.ErrPlaintextCredential},
		{"credential of 16 KiB", "wss://a.example", carrier.Dialer{Credential: token(strings.Repeat("x", 16<<10))}, nil},
		{"longer credential", "wss://a.example", carrier.Dialer{Credential: token(strings.Repeat("x", 16<<10+1))}, carrier.ErrInvalidDialer},
		{"credential outside of ASCII", "wss://a.example", carrier.Dialer{Credential: token("sésame")}, carrier.ErrInvalidDialer},
		{"credential with a line break", "wss://a.example", carrier.Dialer{Credential: token("a\nb")}, carrier.ErrInvalidDialer},
		{"credential that cannot be read", "wss://a.example", carrier.Dialer{Credential: func() (string, error) { return "", io.ErrNoProgress }}, io.ErrNoProgress},
		{"scheme", "ftp://a.example", carrier.Dialer{}, carrier.ErrInvalidDialer},
		{"no host", "ws:///x", carrier.Dialer{}, carrier.ErrInvalidDialer},
		{"user", "wss://u:p@a.example", carrier.Dialer{}, carrier.ErrInvalidDialer},
		{"origin", "wss://a.example", carrier.Dialer{Header: http.Header{"Origin": {"x"}}}, carrier.ErrInvalidDialer},
		{"hello", "wss://a.example", carrier.Dialer{Header: http.Header{"culvert-hello": {"x"}}}, carrier.ErrInvalidDialer},
		{"header name", "wss://a.example", carrier.Dialer{Header: http.Header{"A:": {"x"}}}, carrier.ErrInvalidDialer},
		{"header value", "wss://a.example", carrier.Dialer{Header: http.Header{"A": {"x\r\nB: y"}}}, carrier.ErrInvalidDialer},
		{"upgrade", "wss://a.example", carrier.Dialer{Header: http.Header{"Sec-Websocket-Extensions": {"x"}}}, carrier.ErrInvalidDialer},
		{"connection", "wss://a.example", carrier.Dialer{Header: http.Header{"Connection": {"close"}}}, carrier.ErrInvalidDialer},
		{"another upgrade", "wss://a.example", carrier.Dialer{Header: http.Header{"Upgrade": {"h2c"}}}, carrier.ErrInvalidDialer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.dialer
			d.URL = parseURL(t, tt.url)
			d.NetDial = func(context.Context, string, string) (net.Conn, error) {
				if tt.want != nil {
					t.Error("the network was touched")
				}
				return nil, net.ErrClosed
			}
			if err := d.Validate(); !errors.Is(err, tt.want) {
				t.Errorf("Validate: %v, want %v", err, tt.want)
			}
			_, _, err := d.Dial(t.Context(), nil)
			if tt.want != nil {
				phaseOf(t, err, carrier.PhaseSetup)
				if !errors.Is(err, tt.want) {
					t.Errorf("Dial: %v, want %v", err, tt.want)
				}
			}
		})
	}
	if err := new(carrier.Dialer).Validate(); !errors.Is(err, carrier.ErrInvalidDialer) {
		t.Errorf("no URL: %v", err)
	}
	_, _, err := new(carrier.Dialer).Dial(t.Context(), nil)
	if !errors.Is(err, carrier.ErrInvalidDialer) {
		t.Errorf("no URL: %v", err)
	}
}

// A name that says loopback and leads elsewhere gets no credential.
func TestDialPlaintextAddressIsChecked(t *testing.T) {
	tests := []struct {
		name   string
		dialer carrier.Dialer
		sent   string // the beginning of it
	}{
		{"credential", carrier.Dialer{Credential: token("secret")}, ""},
		{"credential in the header", carrier.Dialer{Header: http.Header{"authorization": {"", "Basic x"}}}, ""},
		{"no credential", carrier.Dialer{}, "GET / "},
		{"plaintext allowed", carrier.Dialer{Credential: token("secret"), AllowPlaintext: true}, "GET / "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				near, far := carriertest.NewPath().Ends()
				got := make(chan string)
				go func() {
					p := make([]byte, 6)
					n, _ := io.ReadFull(far, p)
					far.Close()
					got <- string(p[:n])
				}()
				d := tt.dialer
				d.URL, d.NetDial = parseURL(t, "ws://localhost"), given(elsewhere{near})
				_, _, err := d.Dial(t.Context(), nil)
				if sent := <-got; sent != tt.sent {
					t.Errorf("sent %q, want %q", sent, tt.sent)
				}
				if refused := errors.Is(err, carrier.ErrPlaintextCredential); refused != (tt.sent == "") {
					t.Errorf("got %v", err)
				} else if refused {
					phaseOf(t, err, carrier.PhaseConnect)
				}
			})
		})
	}
}

type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// What goes out, word for word.
func TestDialRequest(t *testing.T) {
	requests := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		http.NotFound(w, r)
	}))
	defer srv.Close()
	d := carrier.Dialer{
		URL:        parseURL(t, strings.Replace(srv.URL, "http", "ws", 1)+"/some%2Fpath?q=1#f"),
		Header:     http.Header{"host": {"front.example"}, "X-Extra": {"1"}, "x-extra": {"1"}},
		Credential: token("secret"),
	}
	_, _, err := d.Dial(t.Context(), []byte{0xff, 0xfe, 0})
	phaseOf(t, err, carrier.PhaseUpgrade)
	r := <-requests
	for name, want := range map[string]string{
		"Connection":               "Upgrade",
		"Upgrade":                  "websocket",
		"Sec-Websocket-Version":    "13",
		"Sec-Websocket-Protocol":   "culvert.v1",
		"Sec-Websocket-Extensions": "",
		"Authorization":            "Bearer secret",
		"Culvert-Hello":            "__4A",
		"X-Extra":                  "1|1",
		"Origin":                   "",
		"Accept-Encoding":          "",
	} {
		if got := strings.Join(r.Header.Values(name), "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if r.Host != "front.example" || r.RequestURI != "/some%2Fpath?q=1" || r.Proto != "HTTP/1.1" {
		t.Errorf("got %s %s to %s", r.Proto, r.RequestURI, r.Host)
	}

	if _, _, err = d.Dial(t.Context(), make([]byte, 1025)); !errors.Is(err, carrier.ErrInvalidDialer) {
		t.Errorf("hello of 1025 bytes: %v", err)
	}
}
