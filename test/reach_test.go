package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/test/agent"
	"culvert/test/netfault"
)

// issued is a certificate for 127.0.0.1 and the authority that signed it, as files.
type issued struct {
	authority, cert, key string
	pin                  string // of the certificate's key
}

func issue(t *testing.T, authority string) issued {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sign := func(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.SerialNumber = big.NewInt(1)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parentKey == nil {
			parentKey = key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	root := &x509.Certificate{
		Subject: pkix.Name{CommonName: authority}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca, caKey := sign(root, root, nil)
	leaf, key := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "tunnel.example"}, DNSNames: []string{"tunnel.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca, caKey)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return issued{
		authority: write("ca.pem", "CERTIFICATE", ca.Raw), cert: write("cert.pem", "CERTIFICATE", leaf.Raw),
		key: write("key.pem", "PRIVATE KEY", pkcs8), pin: carrier.PinOf(leaf).String(),
	}
}

// Who opens TLS on the way is named in one line; who is to be trusted can be said beside the system's
// authorities; a pinned key holds whatever is trusted.
func TestIntercepted(t *testing.T) {
	t.Parallel()
	ours, theirs := issue(t, "Our CA"), issue(t, "Corp Proxy CA")
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--tls-cert", theirs.cert, "--tls-key", theirs.key)
	for _, c := range []struct {
		name   string
		flags  []string
		system string // its authorities
		says   string // "" when the client gets through to the server, which does not know its token
	}{
		{"not trusted", nil, ours.authority, `certificate signed by an unknown authority: issuer "CN=Corp Proxy CA", ` +
			`subject "CN=tunnel.example", for "tunnel.example", "127.0.0.1", valid from `},
		{"trusted by the system", nil, theirs.authority, ""},
		{"trusted too", []string{"--tls-ca", theirs.authority}, ours.authority, ""},
		{"another one trusted too", []string{"--tls-ca", ours.authority}, theirs.authority, ""},
		{"another name", []string{"--tls-server-name", "other.example"}, theirs.authority,
			`certificate for another name than "other.example": issuer "CN=Corp Proxy CA"`},
		{"the pinned key", []string{"--tls-pin", theirs.pin}, theirs.authority, ""},
		{"not the pinned key", []string{"--tls-pin", ours.pin}, theirs.authority, "public key " + theirs.pin + " is not a pinned one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := runProgram(t, []string{"SSL_CERT_FILE=" + c.system, "SSL_CERT_DIR=" + t.TempDir()}, programs.Client,
				append(c.flags, "--server", "wss://"+r.address, "--token-file", tokenFile(t, "unknown-to-the-server"), "-L", "0:127.0.0.1:9")...)
			lines := slices.DeleteFunc(strings.Split(stderr, "\n"), func(line string) bool { return !strings.HasPrefix(line, "culvert-client: ") })
			want := "culvert-client: tls " + r.address + ": " + c.says
			if c.says == "" {
				want = "culvert-client: upgrade " + r.address + ": answered 401"
			}
			if code != exitRefused || len(lines) != 1 || !strings.HasPrefix(lines[0], want) {
				t.Errorf("exit code %d and %q, want %q", code, lines, want)
			}
		})
	}
}

// Of two servers one is killed, and comes back: new connections go on at the other.
func TestFailOver(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	first, second := &rig{t: t, programs: programs}, &rig{t: t, programs: programs}
	first.startServer("127.0.0.1:0")
	second.startServer("127.0.0.1:0")
	r := &rig{t: t, programs: programs}
	r.startClient("ws://"+first.address, append(local(target), "--server", "ws://"+second.address, "--max-backoff", "300ms")...)
	r.client.Find(patience, "session opened", "server", first.address)
	old := connect(t, r.forward(target))
	mustPing(t, old, "before")

	first.server.Kill()
	killed := time.Now()
	r.client.Find(patience, "session lost") // until then, the session is as good as any
	mustPing(t, connect(t, r.forward(target)), "with the other server")
	took := time.Since(killed)
	t.Logf("a new connection was served %v after the first server was killed", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	r.client.Find(patience, "session opened", "server", second.address)

	first.startServer(first.address)
	wantReset(t, old) // which the first server has forgotten
	second.server.Kill()
	r.client.Find(patience, "session lost", "session", sessionOf(r.client, second.address))
	mustPing(t, connect(t, r.forward(target)), "with the first again")
}

// sessionOf is the last session that a client opened at a server.
func sessionOf(client *agent.Process, server string) (session string) {
	for _, line := range client.Lines() {
		if line.Msg == "session opened" && line.Attrs["server"] == server {
			session = line.Attrs["session"]
		}
	}
	return session
}

// gate is a reverse proxy that lets requests with a certain header through, and keeps clients at one
// backend with a cookie.
type gate struct {
	mu      sync.Mutex
	pass    string
	cookies []string // of the requests
}

func newGate(t *testing.T, pass, server string) (g *gate, address string) {
	t.Helper()
	g = &gate{pass: pass}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		g.mu.Lock()
		pass := g.pass
		g.cookies = append(g.cookies, req.Header.Get("Cookie"))
		g.mu.Unlock()
		if req.URL.Path == "/" {
			http.Redirect(w, req, "/tunnel", http.StatusFound)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "backend", Value: "7"})
		if got := req.Header.Get("X-Gate"); got != pass {
			http.Error(w, fmt.Sprintf("%s is not welcome", got), http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	return g, srv.Listener.Addr().String()
}

func (g *gate) lets(pass string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass = pass
}

// A header of the file changes between two dials, as short-lived tokens do, and is shown to nobody.
func TestHeaderFileIsReadAgain(t *testing.T) {
	t.Parallel()
	const first, second = "the-first-secret", "the-second-secret"
	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--path", "/tunnel")
	g, address := newGate(t, first, r.address)
	relay, err := netfault.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	file := filepath.Join(t.TempDir(), "headers")
	write := func(pass string) {
		if err := os.WriteFile(file, []byte("# for the gate\nX-Gate: "+pass+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	r.startClient("ws://"+relay.Addr(), append(local(target), "--header-file", file, "--max-backoff", "200ms")...)
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")

	g.lets(second)
	relay.Cut()
	r.client.ExpectText(patience, "answered 403")
	write(second)
	r.client.Expect(patience, "session resumed")
	mustPing(t, conn, "after")
	for _, line := range r.client.Lines() {
		if strings.Contains(line.Text, first) || strings.Contains(line.Text, second) {
			t.Errorf("a secret in the log: %s", line)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cookies) < 4 || g.cookies[0] != "" || g.cookies[1] != "" || slices.ContainsFunc(g.cookies[2:], func(c string) bool { return c != "backend=7" }) {
		t.Errorf("cookies are %q", g.cookies)
	}
}
