package middlebox

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// interceptor is a mitmproxy that ends the TLS of whoever trusts its authority, and writes down all that
// it sees.
type interceptor struct {
	*agent.Process
	address   string
	authority string // file
	record    string // file; complete when the process has ended
}

func newInterceptor(t *testing.T, options ...string) *interceptor {
	t.Helper()
	dir, port := t.TempDir(), thirdparty.FreePort(t)
	p := &interceptor{
		address:   "127.0.0.1:" + port,
		authority: filepath.Join(dir, "mitmproxy-ca-cert.pem"),
		record:    filepath.Join(dir, "flows"),
	}
	args := []string{
		"--listen-host", "127.0.0.1", "--listen-port", port, "--set", "confdir=" + dir,
		"--ssl-insecure", // of the server: it trusts nobody, and that is not the question
		"--set", "termlog_verbosity=info", "-w", p.record,
	}
	cmd := exec.Command(thirdparty.Program(t, "mitmdump"), append(args, options...)...)
	cmd.Env = agent.Environment("PYTHONUNBUFFERED=1", "HOME="+dir)
	p.Process = agent.Start(t, "mitmdump", cmd)
	p.ExpectText(2*patience, "server listening at")
	return p
}

// seen is everything that the interceptor has seen.
func (p *interceptor) seen(t *testing.T) []byte {
	t.Helper()
	p.Stop(patience)
	record, err := os.ReadFile(p.record)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// answering accepts one connection on loopback, reads what comes first, and answers.
func answering(t *testing.T, n int, answer []byte) (address string, got <-chan []byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := make(chan []byte, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, n)
		if _, err := io.ReadFull(conn, b); err == nil {
			c <- b
			_, _ = conn.Write(answer)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String(), c
}

// A proxy that intercepts TLS sees everything of a tunnel, and nothing in it if it is sealed.
func TestInterceptedTLS(t *testing.T) {
	t.Parallel()
	cert, certKey := certificate(t)
	keyFile := filepath.Join(t.TempDir(), "server.key")
	key := auth.NewPrivateKey("")
	if err := key.Save(keyFile); err != nil {
		t.Fatal(err)
	}
	port, tokenFile := newServer(t, "--tls-cert", cert, "--tls-key", certKey, "--key-file", keyFile)
	for _, c := range []struct {
		name   string
		flags  []string
		sealed bool
	}{
		{"wss", nil, false},
		{"wss sealed", []string{"--server-key", key.Public().String()}, true},
		{"requests", []string{"--carrier", "http"}, false},
		{"requests sealed", []string{"--carrier", "http", "--server-key", key.Public().String()}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var secrets [2][]byte // one each way
			for i := range secrets {
				secrets[i] = make([]byte, 64)
				rand.Read(secrets[i])
			}
			p := newInterceptor(t)
			target, got := answering(t, len(secrets[0]), secrets[1])
			client, forward := newClient(t, nil, target, append(c.flags, "--server", "wss://localhost:"+port,
				"--token-file", tokenFile, "--proxy", "http://"+p.address, "--tls-ca", p.authority)...)
			conn, err := net.Dial("tcp", forward)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Write(secrets[0]); err != nil {
				t.Fatal(err)
			}
			if answer, err := io.ReadAll(conn); err != nil || !bytes.Equal(answer, secrets[1]) {
				t.Fatalf("answered %d bytes, %v", len(answer), err)
			}
			if b := <-got; !bytes.Equal(b, secrets[0]) {
				t.Fatal("something else arrived")
			}
			conn.Close()
			client.Stop(patience)
			record := p.seen(t)
			if !bytes.Contains(record, []byte("ulvert-")) {
				t.Fatalf("the tunnel is not in the %d bytes of the record", len(record))
			}
			for what, secret := range map[string][]byte{"sent": secrets[0], "received": secrets[1], "the token": []byte(token)} {
				if what == "sent" && strings.HasPrefix(c.name, "requests") && !c.sealed {
					continue // a client masks its frames, and mitmproxy knows of none here
				}
				if bytes.Contains(record, secret) == c.sealed {
					t.Errorf("%s: seen %v, sealed %v", what, !c.sealed, c.sealed)
				}
				for _, text := range []string{hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret)} {
					if bytes.Contains(record, []byte(text)) {
						t.Errorf("%s: seen as %s", what, text)
					}
				}
			}
		})
	}
}

// mitmproxy that asks for a password answers no second request on the connection of its 407.
func TestMitmproxyWithPassword(t *testing.T) {
	t.Parallel()
	target := website(t, "behind the proxy")
	cert, certKey := certificate(t)
	port, tokenFile := newServer(t, "--tls-cert", cert, "--tls-key", certKey)
	p := newInterceptor(t, "--proxyauth", "alice:sesame")
	proxy := func(password string) string { return "http://alice:" + password + "@" + p.address }
	flags := []string{"--server", "wss://localhost:" + port, "--token-file", tokenFile, "--tls-ca", p.authority}
	for _, carrier := range []string{"websocket", "http"} {
		client, forward := newClient(t, nil, target, append(flags, "--proxy", proxy("sesame"), "--carrier", carrier)...)
		if got := get(t, forward); got != "behind the proxy" {
			t.Errorf("%s: got %q", carrier, got)
		}
		if n := client.Count("still connecting"); n > 0 {
			t.Errorf("%s: it took long to connect", carrier)
		}
		client.Stop(patience)
	}
	line, code := fails(t, nil, []string{"another"}, append(flags, "--proxy", proxy("another"))...)
	if code != 3 || !strings.Contains(line, "not accepted (Basic)") {
		t.Errorf("wrong password: exit code %d", code)
	}
}

// A client whose server says nothing logs what it is waiting for.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // connections are made by the kernel
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	address := ln.Addr().String()
	client := agent.Start(t, "client", agent.Command(programs.Client, "--server", "ws://"+address, "-L", "0:127.0.0.1:9"))
	client.Find(patience, "still connecting", "server", address, "waiting_for", "the answer of "+address+" to an HTTP request")
}
