package carrier_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/icholy/digest"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

const (
	proxyUser     = "ali ce"
	proxyPassword = "ses:ame"
)

// fakeProxy is a listener on loopback whose connections are all given to serve.
type fakeProxy struct {
	addr string
	mu   sync.Mutex
	n    int // connections
}

func newFakeProxy(t *testing.T, serve func(conn net.Conn)) *fakeProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProxy{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.n++
			p.mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return p
}

func (p *fakeProxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// url is that of the proxy, with the credential if there is to be one.
func (p *fakeProxy) url(scheme string, credential bool) *url.URL {
	u := &url.URL{Scheme: scheme, Host: p.addr}
	if credential {
		u.User = url.UserPassword(proxyUser, proxyPassword)
	}
	return u
}

// through is a Dialer.Proxy that always says u.
func through(u *url.URL) func(*url.URL) (*url.URL, error) {
	return func(*url.URL) (*url.URL, error) { return u, nil }
}

// relay copies both ways until either side ends.
func relay(near io.Reader, conn, far net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(far, near)
		far.Close()
	})
	_, _ = io.Copy(conn, far)
	conn.Close()
	wg.Wait()
}

// connecting serves CONNECT: judge writes a refusal and says whether the
// connection goes on, or returns "" to let the request through to server.
func connecting(server string, judge func(r *http.Request) (refusal string, keep bool)) func(net.Conn) {
	return func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if r.Method != http.MethodConnect || r.RequestURI != r.Host {
				_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
				return
			}
			if judge != nil {
				if refusal, keep := judge(r); refusal != "" {
					_, _ = io.WriteString(conn, refusal)
					if keep {
						continue
					}
					return
				}
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
			relay(in, conn, far)
			return
		}
	}
}

// wants is a 407 with challenges and a body.
func wants(challenges ...string) string {
	answer := "HTTP/1.1 407 Proxy Authentication Required\r\nServer: fake\r\nContent-Length: 4\r\n"
	for _, c := range challenges {
		answer += "Proxy-Authenticate: " + c + "\r\n"
	}
	return answer + "\r\nbody"
}

// echoing starts a server of carriers that send every message back, and returns
// a Dialer that only finds it through a proxy, and its address.
func echoing(t *testing.T, secure bool) (d *carrier.Dialer, addr string) {
	t.Helper()
	var wg sync.WaitGroup
	srv := httptest.NewUnstartedServer(&carrier.Handler{
		Authenticate: secretOnly,
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) {
				wg.Go(func() {
					defer func() { _ = c.Close("") }()
					p := make([]byte, 1<<20)
					for {
						n, err := c.ReadMessage(p)
						if err != nil || send(c, p[:n]) != nil {
							return
						}
					}
				})
			}}, nil
		},
		Options: carrier.Options{MaxMessage: 1 << 20},
	})
	srv.Config.ErrorLog = discardLog()
	d = &carrier.Dialer{Credential: token("secret"), AllowPlaintext: true, Options: carrier.Options{MaxMessage: 1 << 20}}
	scheme := "ws://"
	if secure {
		cert, pool := carriertest.Certificate(t)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		srv.StartTLS()
		scheme, d.TLS = "wss://", &tls.Config{RootCAs: pool, ServerName: "localhost"}
	} else {
		srv.Start()
	}
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
	})
	addr = srv.Listener.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	d.URL = parseURL(t, scheme+"server.invalid:"+port)
	return d, addr
}

// mustEcho dials and sends messages of several sizes there and back.
func mustEcho(t *testing.T, d *carrier.Dialer) {
	t.Helper()
	c, _, err := d.Dial(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close("") }()
	u, err := d.Proxy(d.URL)
	if err != nil || c.Proxy() != u.Host || c.RemoteAddr() != u.Host {
		t.Errorf("proxy %q at %q, want %q", c.Proxy(), c.RemoteAddr(), u.Host)
	}
	p := make([]byte, 1<<20)
	for _, size := range []int{1, 1000, 1 << 20} {
		message := bytes.Repeat([]byte{byte(size)}, size)
		sent := make(chan error, 1)
		go func() { sent <- send(c, slices.Clone(message)) }()
		n, err := c.ReadMessage(p)
		if err != nil || !bytes.Equal(p[:n], message) {
			t.Fatalf("echo of %d bytes: %d, %v", size, n, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

// refusedBy dials, which must fail in the phase of the proxy, and returns the
// error. No secret may be in it.
func refusedBy(t *testing.T, d *carrier.Dialer) error {
	t.Helper()
	c, _, err := d.Dial(t.Context(), nil)
	if err == nil {
		c.Abort(nil)
		_ = c.Close("")
		t.Fatal("dialled")
	}
	phaseOf(t, err, carrier.PhaseProxy)
	if u, _ := d.Proxy(d.URL); !strings.Contains(err.Error(), u.Host) {
		t.Errorf("%q does not say which proxy", err)
	}
	hides(t, err)
	return err
}

func hides(t *testing.T, err error) {
	t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte(proxyUser + ":" + proxyPassword))
	for _, secret := range []string{proxyPassword, basic, basic[:12]} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q tells a secret", err)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("unquoted: %q", err)
	}
}

func TestProxyConnect(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%t", secure), func(t *testing.T) {
			d, addr := echoing(t, secure)
			requests := make(chan *http.Request, 1)
			p := newFakeProxy(t, connecting(addr, func(r *http.Request) (string, bool) {
				requests <- r
				return "", false
			}))
			d.Header = http.Header{"User-Agent": {"Mozilla/5.0"}, "X-Team": {"payments"}}
			var asked string
			d.Proxy = func(u *url.URL) (*url.URL, error) {
				asked = u.String()
				return p.url("http", true), nil
			}
			mustEcho(t, d)
			r := <-requests
			if want := d.URL.Host; r.Host != want || r.RequestURI != want {
				t.Errorf("CONNECT %s with the host %s, want %s", r.RequestURI, r.Host, want)
			}
			if agent := r.Header.Get("User-Agent"); agent != "Mozilla/5.0" {
				t.Errorf("User-Agent %q", agent)
			}
			// What is the server's does not go to the proxy, nor a credential unasked.
			for _, name := range []string{"Authorization", "X-Team", "Culvert-Hello", "Proxy-Authorization"} {
				if r.Header.Get(name) != "" {
					t.Errorf("the proxy was told %s", name)
				}
			}
			if want := strings.Replace(d.URL.String(), "ws", "http", 1); asked != want && asked != d.URL.String() {
				t.Errorf("the proxy is asked for by %s, want %s", asked, want)
			}
		})
	}
}

// The Proxy function is given the schemes that variables are named for.
func TestProxyURL(t *testing.T) {
	for in, want := range map[string]string{
		"ws://h/p": "http://h/p", "wss://h:1/": "https://h:1/", "http://h/": "http://h/", "https://h/": "https://h/",
	} {
		var got string
		d := carrier.Dialer{URL: parseURL(t, in), Proxy: func(u *url.URL) (*url.URL, error) {
			got = u.String()
			return nil, io.ErrNoProgress
		}}
		if err := d.Validate(); !errors.Is(err, io.ErrNoProgress) || got != want {
			t.Errorf("%s: asked for %s, %v", in, got, err)
		}
		_, _, err := d.Dial(t.Context(), nil)
		phaseOf(t, err, carrier.PhaseSetup)
	}
}

func TestProxyAddress(t *testing.T) {
	for u, want := range map[string]string{
		"http://p": "p:80", "https://p": "p:443", "socks5://p": "p:1080", "socks5h://p": "p:1080",
		"http://p:3128": "p:3128", "https://[2001:db8::1]": "[2001:db8::1]:443", "socks5://p:1": "p:1",
	} {
		d := carrier.Dialer{URL: parseURL(t, "wss://h"), Proxy: through(parseURL(t, u))}
		d.NetDial = func(_ context.Context, network, addr string) (net.Conn, error) {
			if network != "tcp" || addr != want {
				t.Errorf("%s: dialled %s %s, want %s", u, network, addr, want)
			}
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "p", IsNotFound: true}}
		}
		_, _, err := d.Dial(t.Context(), nil)
		phaseOf(t, err, carrier.PhaseProxy)
		if dial, _ := errors.AsType[*carrier.DialError](err); dial.Addr != want || carrier.Permanent(err) {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestProxyValidate(t *testing.T) {
	long := strings.Repeat("x", 256)
	tests := []struct {
		name          string
		server, proxy string
		want          error
	}{
		{"none", "wss://h", "", nil},
		{"http", "wss://h", "http://p", nil},
		{"scheme", "wss://h", "ftp://u:sesame@p", carrier.ErrInvalidDialer},
		{"no host", "wss://h", "http://u:sesame@", carrier.ErrInvalidDialer},
		{"long user", "wss://h", "socks5://" + long + ":sesame@p", carrier.ErrInvalidDialer},
		{"no user", "wss://h", "socks5://:sesame@p", carrier.ErrInvalidDialer},
		{"long password", "wss://h", "socks5://u:sesame" + long + "@p", carrier.ErrInvalidDialer},
		{"long host", "wss://" + long, "socks5://p", carrier.ErrInvalidDialer},
		{"long host by CONNECT", "wss://" + long, "http://p", nil},
		// A token in plain text goes to this machine only, and the proxy's loopback
		// is none of ours, wherever the proxy is.
		{"guarded", "ws://localhost", "http://p", carrier.ErrPlaintextCredential},
		{"guarded, proxy here", "ws://127.0.0.1", "http://u:sesame@127.0.0.1:3128", carrier.ErrPlaintextCredential},
		{"guarded, SOCKS", "ws://[::1]", "socks5://[::1]", carrier.ErrPlaintextCredential},
		{"guarded, no proxy", "ws://localhost", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			touched := false
			d := carrier.Dialer{
				URL: parseURL(t, tt.server), Credential: token("secret"),
				Proxy: func(*url.URL) (*url.URL, error) {
					if tt.proxy == "" {
						return nil, nil
					}
					return url.Parse(tt.proxy)
				},
				NetDial: func(context.Context, string, string) (net.Conn, error) {
					touched = true
					return nil, net.ErrClosed
				},
			}
			err := d.Validate()
			if !errors.Is(err, tt.want) || err != nil && strings.Contains(err.Error(), "sesame") {
				t.Errorf("Validate: %v, want %v", err, tt.want)
			}
			_, _, err = d.Dial(t.Context(), nil)
			if touched != (tt.want == nil) {
				t.Errorf("the network was touched: %t", touched)
			}
			if tt.want != nil {
				phaseOf(t, err, carrier.PhaseSetup)
			}
		})
	}
}

// Bytes that come in one segment with the answer belong to the tunnel.
func TestProxyEarlyBytes(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			cert, pool := carriertest.Certificate(t)
			p := newFakeProxy(t, func(conn net.Conn) {
				if scheme == "https" {
					conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
				}
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-")
					_, _ = io.WriteString(conn, "OpenSSH\r\n")
					_, _ = io.Copy(io.Discard, conn)
				}
			})
			d := carrier.Dialer{URL: parseURL(t, "ws://server.invalid"), Proxy: through(p.url(scheme, false)), TLS: &tls.Config{RootCAs: pool}}
			_, _, err := d.Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseUpgrade)
			if !errors.Is(err, carrier.ErrNotCulvert) || !strings.Contains(err.Error(), `"SSH-2.0-`) {
				t.Error(err)
			}
		})
	}
}

// The server's certificate is checked through the proxy as without one.
func TestProxyServerCertificate(t *testing.T) {
	d, addr := echoing(t, true)
	p := newFakeProxy(t, connecting(addr, nil))
	d.Proxy = through(p.url("http", false))
	d.TLS.ServerName = ""
	_, _, err := d.Dial(t.Context(), nil)
	phaseOf(t, err, carrier.PhaseTLS)
	if name, ok := errors.AsType[x509.HostnameError](err); !ok || name.Host != "server.invalid" {
		t.Error(err)
	}
}

func TestProxyTLS(t *testing.T) {
	cert, pool := carriertest.Certificate(t) // for 127.0.0.1, as that of the server is for localhost
	hellos := make(chan *tls.ClientHelloInfo, 10)
	secured := func(serve func(net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			serve(tls.Server(conn, &tls.Config{
				Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
				VerifyConnection: func(state tls.ConnectionState) error {
					if len(state.PeerCertificates) > 0 {
						t.Error("the client's certificate was shown to the proxy")
					}
					return nil
				},
				GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
					hellos <- hello
					return nil, nil
				},
			}))
		}
	}
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%t", secure), func(t *testing.T) {
			d, addr := echoing(t, secure)
			p := newFakeProxy(t, secured(connecting(addr, nil)))
			if d.TLS == nil {
				d.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
			}
			d.TLS.RootCAs.AddCert(cert.Leaf)
			d.TLS.Certificates = []tls.Certificate{cert}
			d.TLS.ServerName = "localhost"
			d.Proxy = through(p.url("https", false))
			mustEcho(t, d)
			hello := <-hellos
			if hello.ServerName != "" || !slices.Equal(hello.SupportedProtos, []string{"http/1.1"}) {
				t.Errorf("asks %q for %q", hello.ServerName, hello.SupportedProtos)
			}
		})
	}
	p := newFakeProxy(t, secured(connecting("", nil)))
	d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url("https", true))}
	if err := refusedBy(t, d); !carrier.Permanent(err) {
		t.Errorf("untrusted: %v", err)
	}
	// Whoever does not verify the server verifies the proxy.
	d.TLS = &tls.Config{InsecureSkipVerify: true}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](refusedBy(t, d)); !ok {
		t.Error("the proxy was not verified")
	}
	// The proxy's name is what counts.
	u := p.url("https", true)
	u.Host = strings.Replace(u.Host, "127.0.0.1", "127.0.0.2", 1)
	d.TLS, d.Proxy = &tls.Config{RootCAs: pool, ServerName: "localhost"}, through(u)
	d.NetDial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, p.addr)
	}
	if _, ok := errors.AsType[x509.HostnameError](refusedBy(t, d)); !ok {
		t.Error("the proxy's name was not verified")
	}

	// The scheme of the proxy's URL may be the wrong one.
	for scheme, p := range map[string]*fakeProxy{
		"https": {addr: answering(t, "HTTP/1.1 400 Bad Request\r\n\r\n")},
		"http":  newFakeProxy(t, secured(connecting("", nil))),
	} {
		d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url(scheme, true))}
		wrong, ok := errors.AsType[*carrier.SchemeError](refusedBy(t, d))
		if !ok || wrong.Scheme != scheme || wrong.Use == scheme || !carrier.Permanent(wrong) {
			t.Errorf("%s: %v", scheme, wrong)
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	const closing = "Connection: close\r\n\r\n"
	basic := base64.StdEncoding.EncodeToString([]byte(proxyUser + ":" + proxyPassword))
	tests := []struct {
		name       string
		answer     string
		credential bool
		text       string
		permanent  bool
		auth       bool
	}{
		{"403", "HTTP/1.1 403 Forbidden\r\nServer: squid/6.13\r\n" + closing + "<html>", true,
			`proxy: 403 Forbidden from the proxy ADDR ("squid/6.13")`, true, false},
		{"405", "HTTP/1.1 405 x\r\n" + closing, false, "405 Method Not Allowed from the proxy ADDR", true, false},
		{"302", "HTTP/1.1 302 x\r\nLocation: http://login/\r\n" + closing, false, "302 Found from the proxy ADDR", true, false},
		{"429", "HTTP/1.1 429 x\r\n" + closing, false, "429 Too Many Requests from the proxy ADDR", false, false},
		{"500", "HTTP/1.0 500 x\r\n\r\n", false, "500 Internal Server Error from the proxy", false, false},
		{"502", "HTTP/1.1 502 x\r\n" + closing, false, "502 Bad Gateway from the proxy", false, false},
		{"503", "HTTP/1.1 503 x\r\n" + closing, false, "503 Service Unavailable from the proxy", false, false},
		{"504", "HTTP/1.1 504 x\r\n" + closing, false, "504 Gateway Timeout from the proxy", false, false},
		{"407", wants(`Basic realm="x"`, "NTLM"), false,
			`407 Proxy Authentication Required from the proxy ADDR ("fake"): it wants a user name and a password, offered: ["Basic" "NTLM"]`, true, true},
		{"407 for nothing of ours", wants("Bearer", "Kerberos x"), true, `in none of the ways known here (Digest, NTLM, Basic), offered: ["Bearer" "Kerberos"]`, true, true},
		{"407 for a Digest unknown here", wants(`Digest realm="x", nonce="y", algorithm=MD5-sess`), true, "in none of the ways", true, true},
		{"407 without a challenge", wants(), true, "in none of the ways", true, true},
		{"407 again", wants("Basic"), true, "user name or password not accepted (Basic)", true, true},
		{"401 without a credential", "HTTP/1.1 401 x\r\n" + closing, false, "401 Unauthorized from the proxy", true, false},
		{"407 with many schemes", wants("A, B, C, D, E, F, G, H, I, J"), true, `"H"]`, true, true},
		{"the secret said back", "HTTP/1.1 403 " + basic + "\r\nServer: " + basic + " " + proxyPassword + "\r\n" + closing, true, `("[credential] [credential]")`, true, false},
		{"the secret as a scheme", wants("Basic, x" + strings.ReplaceAll(proxyPassword, ":", "")), true, "not accepted", true, true},
		{"garbage", "SSH-2.0-OpenSSH_9.9\r\n", false, `not such a proxy: it answers "SSH-2.0-OpenSSH_", which is not HTTP`, true, false},
		{"short garbage", "SSH", false, `it answers "SSH"`, true, false},
		{"the secret as garbage", "x" + proxyPassword, true, `it answers "x[credential]"`, true, false},
		{"half of the secret as garbage", strings.Repeat("x", 13) + proxyPassword, true, `it answers "xxxxxxxxxxxxx"`, true, false},
		{"malformed status", "HTTP/1.1 " + proxyPassword + "\r\n\r\n", true, "it answers with a malformed header", true, false},
		{"malformed header", "HTTP/1.1 200 OK\r\n" + basic + "\r\n\r\n", true, "it answers with a malformed header", true, false},
		{"endless header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", false, "it answers with a header of more than 16384 bytes", true, false},
		{"nothing", "", false, "connection closed without an answer: EOF", false, false},
		{"half an answer", "HTTP/1.1 200 OK\r\nVia:", false, "in the middle of the answer: EOF", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newFakeProxy(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				for {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					_, _ = io.WriteString(conn, tt.answer)
					if !strings.HasPrefix(tt.answer, "HTTP/1.1 407") {
						_ = conn.(*net.TCPConn).CloseWrite()
						_, _ = io.Copy(io.Discard, in)
						return
					}
				}
			})
			d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url("http", tt.credential))}
			err := refusedBy(t, d)
			if text := strings.ReplaceAll(tt.text, "ADDR", p.addr); !strings.Contains(err.Error(), text) {
				t.Errorf("%q does not say %q", err, text)
			}
			if carrier.Permanent(err) != tt.permanent || errors.Is(err, carrier.ErrProxyCredential) != tt.auth {
				t.Errorf("%v: permanent %t, about the credential %t", err, carrier.Permanent(err), errors.Is(err, carrier.ErrProxyCredential))
			}
			if errors.Is(err, carrier.ErrNotCulvert) {
				t.Errorf("%v is about the server", err)
			}
		})
	}
}

// A dial ends with its time-out, whatever the proxy does not say.
func TestProxySilent(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		for name, answer := range map[string]string{"nothing": "", "half": "HTTP/1.1 200 OK\r\n", "half a header": "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n"} {
			t.Run(scheme+"/"+name, func(t *testing.T) {
				p := newFakeProxy(t, func(conn net.Conn) {
					if scheme == "http" {
						_, _ = io.WriteString(conn, answer)
					}
					_, _ = io.Copy(io.Discard, conn)
				})
				d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url(scheme, true)), Timeout: 30 * time.Millisecond}
				if err := refusedBy(t, d); !errors.Is(err, context.DeadlineExceeded) || carrier.Permanent(err) {
					t.Error(err)
				}
			})
		}
	}
}

// digestJudge lets a request through that answers challenge with the right password,
// and each nonce with a count of its own. With stale it replaces the nonce once.
func digestJudge(t *testing.T, challenge *digest.Challenge, stale, keep bool) func(*http.Request) (string, bool) {
	refusal := func() string {
		answer := wants(`Basic realm="x"`, challenge.String())
		if !keep {
			answer = strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n", 1)
		}
		return answer
	}
	count := 0
	return func(r *http.Request) (string, bool) {
		header := r.Header.Get("Proxy-Authorization")
		if header == "" {
			return refusal(), keep
		}
		got, err := digest.ParseCredentials(header)
		if err != nil {
			t.Errorf("%q: %v", header, err)
			return refusal(), keep
		}
		if stale && got.Nonce == "first" {
			challenge.Nonce, challenge.Stale, count = "second", true, 0
			return refusal(), keep
		}
		want, err := digest.Digest(challenge, digest.Options{
			Method: "CONNECT", URI: r.RequestURI, Username: proxyUser, Password: proxyPassword, Cnonce: got.Cnonce, Count: got.Nc,
		})
		if err != nil {
			t.Error(err)
		}
		if got.Response != want.Response || got.URI != r.RequestURI {
			return refusal(), keep
		}
		if count++; len(challenge.QOP) > 0 && got.Nc != count {
			t.Errorf("the nonce is used for time %d with the count %d", count, got.Nc)
		}
		return "", false
	}
}

func TestProxyAuthentication(t *testing.T) {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(proxyUser+":"+proxyPassword))
	basicJudge := func(refusal string, keep bool) func(*testing.T) func(*http.Request) (string, bool) {
		return func(*testing.T) func(*http.Request) (string, bool) {
			return func(r *http.Request) (string, bool) {
				if r.Header.Get("Proxy-Authorization") == basic {
					return "", false
				}
				return refusal, keep
			}
		}
	}
	digestOf := func(stale, keep bool, c digest.Challenge) func(*testing.T) func(*http.Request) (string, bool) {
		return func(t *testing.T) func(*http.Request) (string, bool) {
			c := c
			c.Realm, c.Nonce = `the "proxy", of ours`, "first"
			return digestJudge(t, &c, stale, keep)
		}
	}
	chunked := "HTTP/1.1 407 x\r\nTransfer-Encoding: chunked\r\nProxy-Authenticate: Basic\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
	tests := []struct {
		name        string
		judge       func(*testing.T) func(*http.Request) (string, bool)
		connections int
	}{
		{"Basic", basicJudge(wants(`basic realm="x"`), true), 2},
		{"Basic, chunked", basicJudge(chunked, true), 2},
		{"Basic, closed as announced", basicJudge(strings.Replace(wants("Basic"), "\r\n", "\r\nConnection: close\r\n", 1), true), 2},
		{"Basic, closed as Proxy-Connection says", basicJudge(strings.Replace(wants("Basic"), "\r\n", "\r\nProxy-Connection: Close\r\n", 1), true), 2},
		{"Basic, closed unannounced", basicJudge(wants("Basic"), false), 2},
		{"Basic, HTTP/1.0", basicJudge(strings.Replace(wants("Basic"), "1.1", "1.0", 1), true), 2},
		{"Basic, HTTP/1.0 kept", basicJudge(strings.Replace(wants("Basic"), "1.1 407 Proxy Authentication Required", "1.0 407 x\r\nProxy-Connection: keep-alive", 1), true), 2},
		{"Basic, body without a length", basicJudge(strings.Replace(wants("Basic"), "Content-Length: 4", "Proxy-Connection: keep-alive", 1), true), 2},
		{"Basic, body without an end", basicJudge(strings.Replace(wants("Basic"), "Content-Length: 4", "Content-Length: 1000000", 1)+strings.Repeat("x", 1000000), false), 2},
		{"Digest", digestOf(false, true, digest.Challenge{QOP: []string{"auth"}}), 2},
		{"Digest of old", digestOf(false, true, digest.Challenge{}), 2},
		{"Digest with MD5", digestOf(false, true, digest.Challenge{Algorithm: "MD5", QOP: []string{"auth", "auth-int"}, Opaque: "o"}), 2},
		{"Digest with SHA-256", digestOf(false, true, digest.Challenge{Algorithm: "SHA-256", QOP: []string{"auth"}, Userhash: true}), 2},
		{"Digest, closed", digestOf(false, false, digest.Challenge{QOP: []string{"auth"}}), 2},
		{"Digest, stale", digestOf(true, true, digest.Challenge{QOP: []string{"auth"}}), 3},
		{"Digest, stale and closed", digestOf(true, false, digest.Challenge{QOP: []string{"auth"}}), 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, addr := echoing(t, true)
			p := newFakeProxy(t, connecting(addr, tt.judge(t)))
			d.Proxy, d.Ladder = through(p.url("http", true)), new(carrier.Ladder)
			mustEcho(t, d)
			if n := p.connections(); n != tt.connections {
				t.Errorf("%d connections, want %d", n, tt.connections)
			}
			for again := range 2 { // the credential is sent at once
				mustEcho(t, d)
				if n := p.connections(); n != tt.connections+again+1 {
					t.Errorf("%d connections after %d dials, want %d", n, again+2, tt.connections+again+1)
				}
			}
			u := p.url("http", true)
			u.User = url.UserPassword(proxyUser, proxyPassword+"x")
			d.Proxy = through(u)
			err := refusedBy(t, d)
			if !errors.Is(err, carrier.ErrProxyCredential) || !strings.Contains(err.Error(), "not accepted") {
				t.Errorf("wrong password: %v", err)
			}
		})
	}
}

// Tinyproxy answers a wrong password with 401, which is not about the server's token.
func TestProxyRefusesPasswordWith401(t *testing.T) {
	var connects, others atomic.Int32
	p := newFakeProxy(t, func(conn net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		switch {
		case err != nil:
		case r.Method != http.MethodConnect:
			others.Add(1)
		case r.Header.Get("Proxy-Authorization") == "":
			connects.Add(1)
			_, _ = io.WriteString(conn, wants("Basic"))
		default:
			connects.Add(1)
			_, _ = io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n")
		}
	})
	d := &carrier.Dialer{
		URL: parseURL(t, "ws://server.invalid"), Mode: carrier.ModeAuto, Ladder: new(carrier.Ladder), Proxy: through(p.url("http", true)),
	}
	err := refusedBy(t, d)
	if !errors.Is(err, carrier.ErrProxyCredential) || !carrier.Permanent(err) || !strings.Contains(err.Error(), "not accepted (Basic)") {
		t.Error(err)
	}
	if connects.Load() != 2 || others.Load() != 0 {
		t.Errorf("%d times CONNECT, %d other requests", connects.Load(), others.Load())
	}
}

// A nonce that is stale for ever ends the dial, and a password that is refused is
// not tried again: that locks accounts.
func TestProxyDigestRefused(t *testing.T) {
	for challenge, want := range map[string]int{
		`Digest realm="x", nonce="n", qop="auth", stale=TRUE`: 3,
		`Digest realm="x", nonce="n", qop="auth"`:             2,
	} {
		requests := 0
		p := newFakeProxy(t, connecting("", func(*http.Request) (string, bool) {
			requests++
			return wants(challenge, "Basic"), true
		}))
		d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url("http", true))}
		if err := refusedBy(t, d); !errors.Is(err, carrier.ErrProxyCredential) || requests != want {
			t.Errorf("%s: after %d requests: %v", challenge, requests, err)
		}
	}
}

// ntlmChallenge is an NTLM challenge message (MS-NLMP, 2.2.1.2) as far as clients
// need one: no names, and target information that ends at once.
func ntlmChallenge() []byte {
	b := append([]byte("NTLMSSP\x00"), 2, 0, 0, 0)
	b = append(b, make([]byte, 8)...)                   // target name
	b = binary.LittleEndian.AppendUint32(b, 0x20888205) // Unicode, NTLM, extended session security, target info, 128 bits
	b = append(b, 1, 2, 3, 4, 5, 6, 7, 8)               // challenge
	b = append(b, make([]byte, 8)...)                   // reserved
	b = binary.LittleEndian.AppendUint16(b, 4)          // target info: length,
	b = binary.LittleEndian.AppendUint16(b, 4)          // again,
	b = binary.LittleEndian.AppendUint32(b, 48)         // and where
	return append(b, 0, 0, 0, 0)
}

// ntlmField is a part of an NTLM message that its header points to at.
func ntlmField(message []byte, at int) []byte {
	length := int(binary.LittleEndian.Uint16(message[at:]))
	offset := int(binary.LittleEndian.Uint32(message[at+4:]))
	return message[offset : offset+length]
}

func TestProxyNTLM(t *testing.T) {
	for _, scheme := range []string{"NTLM", "Negotiate"} {
		t.Run(scheme, func(t *testing.T) {
			d, addr := echoing(t, true)
			var mu sync.Mutex
			var steps []string
			step := func(s string) {
				mu.Lock()
				defer mu.Unlock()
				steps = append(steps, s)
			}
			// The handshake belongs to its connection, and so does the state of it.
			p := newFakeProxy(t, func(conn net.Conn) {
				asked := false
				connecting(addr, func(r *http.Request) (string, bool) {
					header := r.Header.Get("Proxy-Authorization")
					message, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(header, scheme+" "))
					switch {
					case header == "":
						step("none")
						return strings.Replace(wants(scheme, "Basic"), "\r\n", "\r\nConnection: close\r\n", 1), false
					case err != nil || len(message) < 32 || string(message[:8]) != "NTLMSSP\x00":
						t.Errorf("no message: %q", header)
					case message[8] == 1:
						step("negotiate")
						asked = true
						return wants(scheme + " " + base64.StdEncoding.EncodeToString(ntlmChallenge())), true
					case message[8] == 3 && asked:
						step("authenticate")
						user := string(slices.DeleteFunc(slices.Clone(ntlmField(message, 36)), func(b byte) bool { return b == 0 }))
						domain := string(slices.DeleteFunc(slices.Clone(ntlmField(message, 28)), func(b byte) bool { return b == 0 }))
						if user == "alice" && domain == "OFFICE" && len(ntlmField(message, 20)) > 16 {
							return "", false
						}
						t.Errorf("user %q, domain %q", user, domain)
					}
					return wants(scheme), true
				})(conn)
			})
			u := p.url("http", false)
			u.User = url.UserPassword(`OFFICE\alice`, proxyPassword)
			d.Proxy = through(u)
			mustEcho(t, d)
			if want := []string{"none", "negotiate", "authenticate"}; !slices.Equal(steps, want) || p.connections() != 2 {
				t.Errorf("%d connections, %q", p.connections(), steps)
			}
		})
	}
}

// What cannot work ends the dial: a handshake cut in two, and one that is refused.
func TestProxyNTLMRefused(t *testing.T) {
	challenge := "NTLM " + base64.StdEncoding.EncodeToString(ntlmChallenge())
	for _, tt := range []struct {
		name    string
		answers []string // to each of the three requests
		text    string
	}{
		{"closed in the middle", []string{wants("NTLM"), strings.Replace(wants(challenge), "\r\n", "\r\nConnection: close\r\n", 1)}, "the proxy closes it"},
		{"refused", []string{wants("NTLM"), wants(challenge), wants("NTLM")}, "not accepted (NTLM)"},
		{"refused at once", []string{wants("NTLM"), wants("NTLM")}, "was not given the password"},
		{"malformed", []string{wants("NTLM"), wants("NTLM AAAA")}, "was not given the password"},
		{"not in base64", []string{wants("NTLM"), wants("NTLM ?")}, "was not given the password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			p := newFakeProxy(t, connecting("", func(*http.Request) (string, bool) {
				n++
				if n > len(tt.answers) {
					t.Error("asked once more")
					return wants("NTLM"), false
				}
				return tt.answers[n-1], true
			}))
			d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url("http", true))}
			if err := refusedBy(t, d); !strings.Contains(err.Error(), tt.text) || n != len(tt.answers) {
				t.Errorf("after %d requests: %v", n, err)
			}
		})
	}
}

// A proxy that answers one request on each connection, and keeps it open in silence,
// is used with a connection for each request.
func TestProxySilentAfterRefusal(t *testing.T) {
	for _, tt := range []struct {
		name    string
		offered string
		judge   func(r *http.Request, authorization string) string // the refusal; "" lets the request through
	}{
		{"Basic", "Basic", nil},
		{"NTLM, then Basic", "NTLM, Basic", func(_ *http.Request, authorization string) string {
			if strings.HasPrefix(authorization, "NTLM ") { // it never answers the second message
				return wants("NTLM " + base64.StdEncoding.EncodeToString(ntlmChallenge()))
			}
			return ""
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, addr := echoing(t, false)
			p := newFakeProxy(t, func(conn net.Conn) {
				refused := false
				connecting(addr, func(r *http.Request) (string, bool) {
					if refused {
						_, _ = io.Copy(io.Discard, conn)
						return "", false
					}
					authorization := r.Header.Get("Proxy-Authorization")
					refusal := ""
					if tt.judge != nil {
						refusal = tt.judge(r, authorization)
					}
					if authorization == "" {
						refusal = wants(tt.offered)
					}
					refused = refusal != ""
					return refusal, true
				})(conn)
			})
			d.Proxy, d.Ladder, d.Timeout = through(p.url("http", true)), new(carrier.Ladder), 4*time.Second
			mustEcho(t, d)
			before := p.connections()
			mustEcho(t, d)
			if n := p.connections() - before; n != 1 {
				t.Errorf("the second dial made %d connections", n)
			}
		})
	}
}

// A scheme that ends before the proxy has got the password does not count: the next one
// is tried.
func TestProxyNextScheme(t *testing.T) {
	challenge := base64.StdEncoding.EncodeToString(ntlmChallenge())
	closing := func(answer string) string { return strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n", 1) }
	keyExchange := ntlmChallenge()
	keyExchange[23] |= 0x40 // which go-ntlmssp does not know
	for _, tt := range []struct {
		name    string
		offered []string
		answer  string // to the first message of NTLM
		used    []string
	}{
		{"Negotiate that is Kerberos", []string{"Negotiate", "Basic"}, wants("Negotiate", "Basic"), []string{"", "Negotiate", "Basic"}},
		{"neither NTLM nor Negotiate", []string{"Negotiate", "NTLM", "Basic"}, wants("Negotiate", "NTLM", "Basic"), []string{"", "NTLM", "Negotiate", "Basic"}},
		{"closed with the challenge", []string{"NTLM", "Basic"}, closing(wants("NTLM " + challenge)), []string{"", "NTLM", "Basic"}},
		{"a challenge of another kind", []string{"NTLM", "Basic"}, wants("NTLM " + base64.StdEncoding.EncodeToString(keyExchange)), []string{"", "NTLM", "Basic"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, addr := echoing(t, false)
			var mu sync.Mutex
			var used []string
			p := newFakeProxy(t, connecting(addr, func(r *http.Request) (string, bool) {
				scheme, _, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
				mu.Lock()
				defer mu.Unlock()
				used = append(used, scheme)
				switch scheme {
				case "Basic":
					return "", false
				case "":
					return wants(tt.offered...), true
				default:
					return tt.answer, true
				}
			}))
			d.Proxy, d.Ladder = through(p.url("http", true)), new(carrier.Ladder)
			mustEcho(t, d)
			mustEcho(t, d)
			if want := append(tt.used, "Basic"); !slices.Equal(used, want) {
				t.Errorf("used %q, want %q", used, want)
			}
		})
	}
}

// A credential that worked and is refused later is not sent twice in one dial, unless
// the proxy wants it in another way.
func TestProxyChangesItsMind(t *testing.T) {
	for _, tt := range []struct {
		name   string
		later  string // its challenge in the second dial
		used   []string
		accept bool
	}{
		{"the password", "Basic", []string{"Basic"}, false},
		{"the scheme", `Digest realm="x", nonce="n", qop="auth"`, []string{"Basic", "Digest"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, addr := echoing(t, false)
			var mu sync.Mutex
			challenge, accepted := "Basic", "Basic"
			var used []string
			p := newFakeProxy(t, connecting(addr, func(r *http.Request) (string, bool) {
				scheme, _, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
				mu.Lock()
				defer mu.Unlock()
				used = append(used, scheme)
				if scheme == accepted {
					return "", false
				}
				return wants(challenge), true
			}))
			d.Proxy, d.Ladder = through(p.url("http", true)), new(carrier.Ladder)
			mustEcho(t, d)
			mu.Lock()
			challenge, accepted, used = tt.later, "nothing", nil
			if tt.accept {
				accepted = "Digest"
			}
			mu.Unlock()
			if tt.accept {
				mustEcho(t, d)
			} else if err := refusedBy(t, d); !strings.Contains(err.Error(), "not accepted (Basic)") {
				t.Error(err)
			}
			if !slices.Equal(used, tt.used) {
				t.Errorf("used %q, want %q", used, tt.used)
			}
		})
	}
}

// socksServer serves SOCKS 5 with a password, if there is to be one, or says reply
// to every request. Requests are told to asked, with the methods that came before.
func socksServer(server string, password bool, reply byte, asked func(methods []byte, kind byte, address string)) func(net.Conn) {
	return func(conn net.Conn) {
		read := func(n int) []byte {
			p := make([]byte, n)
			_, _ = io.ReadFull(conn, p)
			return p
		}
		methods := read(int(read(2)[1]))
		switch {
		case !password:
			_, _ = conn.Write([]byte{5, 0})
		case !bytes.Contains(methods, []byte{2}):
			_, _ = conn.Write([]byte{5, 0xff})
			return
		default:
			_, _ = conn.Write([]byte{5, 2})
			user := string(read(int(read(2)[1])))
			if secret := string(read(int(read(1)[0]))); user != proxyUser || secret != proxyPassword {
				_, _ = conn.Write([]byte{1, 1})
				return
			}
			_, _ = conn.Write([]byte{1, 0})
		}
		request := read(4)
		var host string
		switch request[3] {
		case 1:
			host = net.IP(read(4)).String()
		case 3:
			host = string(read(int(read(1)[0])))
		case 4:
			host = net.IP(read(16)).String()
		}
		asked(methods, request[3], net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(read(2))))))
		if reply != 0 {
			_, _ = conn.Write([]byte{5, reply}) // some say no more
			return
		}
		far, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		bound := map[byte][]byte{1: make([]byte, 6), 3: append([]byte{4}, "name\x00\x00"...), 4: make([]byte, 18)}[request[3]]
		_, _ = conn.Write(append([]byte{5, 0, 0, request[3]}, bound...))
		relay(conn, conn, far)
	}
}

func TestProxySOCKS(t *testing.T) {
	for _, tt := range []struct {
		scheme     string
		host       string
		credential bool
		password   bool
		kind       byte
	}{
		{"socks5", "server.invalid", false, false, 3},
		{"socks5h", "server.invalid", false, false, 3},
		{"socks5", "server.invalid", true, true, 3},
		{"socks5", "server.invalid", true, false, 3},
		{"socks5", "192.0.2.1", true, true, 1},
		{"socks5", "2001:db8::1", false, false, 4},
	} {
		t.Run(fmt.Sprintf("%s %s %t %t", tt.scheme, tt.host, tt.credential, tt.password), func(t *testing.T) {
			d, addr := echoing(t, tt.credential)
			d.URL.Host = net.JoinHostPort(tt.host, d.URL.Port())
			p := newFakeProxy(t, socksServer(addr, tt.password, 0, func(methods []byte, kind byte, address string) {
				if bytes.Contains(methods, []byte{2}) != tt.credential {
					t.Errorf("offers the methods %d", methods)
				}
				if kind != tt.kind || address != d.URL.Host {
					t.Errorf("asked for %s of type %d", address, kind)
				}
			}))
			d.Proxy = through(p.url(tt.scheme, tt.credential))
			mustEcho(t, d)
		})
	}
}

func TestProxySOCKSRefuses(t *testing.T) {
	noMore := func(answers ...string) func(net.Conn) {
		return func(conn net.Conn) {
			p := make([]byte, 1024)
			for _, answer := range answers {
				_, _ = conn.Read(p)
				_, _ = io.WriteString(conn, answer)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	replies := func(reply byte) func(net.Conn) { return socksServer("", false, reply, func([]byte, byte, string) {}) }
	for _, tt := range []struct {
		name       string
		serve      func(net.Conn)
		credential bool
		text       string
		permanent  bool
		auth       bool
	}{
		{"general failure", replies(1), false, "proxy: SOCKS reply 1, general failure, from the proxy ADDR", false, false},
		{"ruleset", replies(2), false, "connection not allowed by ruleset", true, false},
		{"network", replies(3), false, "network unreachable", false, false},
		{"host", replies(4), false, "host unreachable", false, false},
		{"refused", replies(5), false, "connection refused", false, false},
		{"TTL", replies(6), false, "TTL expired", false, false},
		{"command", replies(7), false, "command not supported", true, false},
		{"address", replies(8), false, "address type not supported", true, false},
		{"unknown", replies(99), false, "SOCKS reply 99 from", false, false},
		{"no password", socksServer("", true, 0, nil), false, "SOCKS authentication refused from the proxy ADDR: it wants a user name and a password", true, true},
		{"wrong password", noMore("\x05\x02", "\x01\x01"), true, "user name or password not accepted", true, true},
		{"no way", noMore("\x05\xff"), true, "in none of the ways", true, true},
		{"a method not offered", noMore("\x05\x02"), false, "it wants a user name", true, true},
		{"HTTP", noMore("HTTP/1.1 400 Bad Request\r\n\r\n"), true, `it answers "HT", which is not SOCKS 5`, true, false},
		{"SOCKS 4", noMore("\x05\x00", "\x00\x5b"), false, "its reply is not one of SOCKS 5", true, false},
		{"address type", noMore("\x05\x00", "\x05\x00\x00\x09\x00"), false, "an address of type 9", true, false},
		{"cut", noMore("\x05"), false, "EOF", false, false},
		{"cut later", noMore("\x05\x00", "\x05\x00\x00\x03\x20"), false, "EOF", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newFakeProxy(t, tt.serve)
			d := &carrier.Dialer{URL: parseURL(t, "wss://server.invalid"), Proxy: through(p.url("socks5", tt.credential))}
			err := refusedBy(t, d)
			if text := strings.ReplaceAll(tt.text, "ADDR", p.addr); !strings.Contains(err.Error(), text) {
				t.Errorf("%q does not say %q", err, text)
			}
			if carrier.Permanent(err) != tt.permanent || errors.Is(err, carrier.ErrProxyCredential) != tt.auth {
				t.Errorf("%v: permanent %t, about the credential %t", err, carrier.Permanent(err), errors.Is(err, carrier.ErrProxyCredential))
			}
		})
	}
}

// forwarding is a proxy that has no leave for CONNECT, refusing it with judge's
// words, and passes other requests on to server unless judge refuses them too.
func forwarding(t *testing.T, server string, judge func(r *http.Request) (status int, header http.Header)) string {
	next := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: server}) },
		FlushInterval: -1,
		ErrorLog:      discardLog(),
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status, header := judge(r); status != 0 {
			maps.Copy(w.Header(), header)
			w.WriteHeader(status)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// pipesOf starts a server of pipes, and returns a Dialer that only finds it through
// a proxy, and its address.
func pipesOf(t *testing.T) (d *carrier.Dialer, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{
		Authenticate: secretOnly,
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) {
				wg.Go(func() {
					_, _ = c.ReadMessage(nil) // until the client leaves
					_ = c.Close("")
				})
			}}, nil
		},
	}})
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return &carrier.Dialer{
		URL: parseURL(t, "ws://server.invalid"), Mode: carrier.ModeAuto,
		Credential: token("secret"), AllowPlaintext: true,
	}, ln.Addr().String()
}

// A proxy that passes requests on is given its credential only in the way that it
// asks for.
func TestForwardedCredential(t *testing.T) {
	basic := http.Header{"Proxy-Authenticate": {"Basic realm=x"}}
	connect := func(r *http.Request) bool { return r.Method == http.MethodConnect }
	given := func(r *http.Request) bool { return r.Header.Get("Proxy-Authorization") != "" }
	for name, tt := range map[string]struct {
		judge func(r *http.Request) (int, http.Header)
		works bool
		shows bool // the password
	}{
		"nobody asks": {func(r *http.Request) (int, http.Header) {
			if connect(r) {
				return 405, nil
			}
			return 0, nil
		}, true, false},
		"asks for requests": {func(r *http.Request) (int, http.Header) {
			switch {
			case connect(r):
				return 403, nil
			case !given(r):
				return 407, basic
			}
			return 0, nil
		}, true, true},
		"asks for tunnels": {func(r *http.Request) (int, http.Header) {
			switch {
			case !given(r):
				return 407, basic
			case connect(r):
				return 403, nil
			}
			return 0, nil
		}, true, true},
		"wants Digest": {func(r *http.Request) (int, http.Header) {
			switch {
			case !strings.HasPrefix(r.Header.Get("Proxy-Authorization"), "Digest "):
				return 407, http.Header{"Proxy-Authenticate": {`Digest realm="x", nonce="y", qop="auth"`}}
			case connect(r):
				return 403, nil
			}
			return 0, nil
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, addr := pipesOf(t)
			var shown atomic.Bool
			proxy := forwarding(t, addr, func(r *http.Request) (int, http.Header) {
				if strings.HasPrefix(r.Header.Get("Proxy-Authorization"), "Basic ") {
					shown.Store(true)
				}
				return tt.judge(r)
			})
			d.Proxy = through(&url.URL{Scheme: "http", Host: proxy, User: url.UserPassword(proxyUser, proxyPassword)})
			if err := dialed(t, d); (err == nil) != tt.works {
				t.Error(err)
			}
			if shown.Load() != tt.shows {
				t.Errorf("the password was shown: %t", shown.Load())
			}
		})
	}
}

// A proxy that passes requests on may say them back; an error hides its credential
// as well.
func TestForwardedErrorHidesCredential(t *testing.T) {
	d, addr := pipesOf(t)
	proxy := forwarding(t, addr, func(r *http.Request) (int, http.Header) {
		switch given := r.Header.Get("Proxy-Authorization"); {
		case given == "":
			return 407, http.Header{"Proxy-Authenticate": {"Basic realm=x"}}
		case r.Method == http.MethodConnect:
			return 403, nil
		default: // as a culvert server, which is believed
			return 401, http.Header{"Server": {given + r.Header.Get("Authorization")}, "Www-Authenticate": {"Bearer"}}
		}
	})
	d.Proxy = through(&url.URL{Scheme: "http", Host: proxy, User: url.UserPassword(proxyUser, proxyPassword)})
	err := dialed(t, d)
	if !errors.Is(err, carrier.ErrUnauthorized) || !strings.Contains(err.Error(), "[credential]") {
		t.Error(err)
	}
	hides(t, err)
}

// Where the server is not dialled by the name that its requests have, no proxy can
// pass them on: they would go to somebody else, credential included.
func TestForwardedToNobodyElse(t *testing.T) {
	for name, change := range map[string]func(d *carrier.Dialer){
		"address": func(d *carrier.Dialer) { d.Address = "192.0.2.1:80" },
		"host":    func(d *carrier.Dialer) { d.Header = http.Header{"Host": {"front.invalid"}} },
	} {
		t.Run(name, func(t *testing.T) {
			d, addr := pipesOf(t)
			proxy := forwarding(t, addr, func(r *http.Request) (int, http.Header) {
				if r.Method != http.MethodConnect {
					t.Errorf("%s of %s", r.Method, r.RequestURI)
				}
				return 403, nil
			})
			d.Proxy = through(&url.URL{Scheme: "http", Host: proxy})
			change(d)
			var refused *carrier.ProxyError
			if err := dialed(t, d); !errors.As(err, &refused) || refused.Status != 403 {
				t.Error(err)
			}
		})
	}
}

// A proxy may say that an answer is to come (RFC 9110, 15.2), but not for ever.
func TestProxySaysItIsComing(t *testing.T) {
	d, addr := echoing(t, false)
	const wait = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
	var times atomic.Int32
	times.Store(1)
	p := newFakeProxy(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, strings.Repeat(wait, int(times.Load())))
		connecting(addr, nil)(conn)
	})
	d.Proxy = through(p.url("http", false))
	mustEcho(t, d)

	times.Store(1000)
	if err := refusedBy(t, d); !errors.Is(err, carrier.ErrNotProxy) {
		t.Error(err)
	}
}

// A wrong password is given once, however many requests a pipe makes: each more
// brings the account nearer to being locked.
func TestPipeGivesWrongPasswordOnce(t *testing.T) {
	for _, way := range []string{"tunnel", "requests"} {
		t.Run(way, func(t *testing.T) {
			d, addr := pipesOf(t)
			d.Mode = carrier.ModeHTTP
			var given atomic.Int32
			proxy := forwarding(t, addr, func(r *http.Request) (int, http.Header) {
				if way == "requests" && r.Method == http.MethodConnect {
					return 403, nil
				}
				if r.Header.Get("Proxy-Authorization") != "" {
					given.Add(1)
				}
				return 407, http.Header{"Proxy-Authenticate": {"Basic realm=x"}}
			})
			d.Proxy = through(&url.URL{Scheme: "http", Host: proxy, User: url.UserPassword(proxyUser, proxyPassword)})
			if err := dialed(t, d); err == nil {
				t.Error("dialled")
			}
			if n := given.Load(); n != 1 {
				t.Errorf("given %d times", n)
			}
		})
	}
}

// A SOCKS proxy is told the address that is dialled, whose length has one byte.
func TestSOCKSLongAddress(t *testing.T) {
	d := carrier.Dialer{
		URL: parseURL(t, "wss://h"), Address: strings.Repeat("x", 256) + ":443",
		Proxy: through(&url.URL{Scheme: "socks5", Host: "p"}),
	}
	if err := d.Validate(); !errors.Is(err, carrier.ErrInvalidDialer) {
		t.Error(err)
	}
}
