package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/tunnel"
)

// An identity that is removed while the certificate and its key do not match, as in the
// middle of a renewal, is gone at once. The certificate follows when the key is there,
// with no other file touched.
func TestRevocationDuringRenewal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	certificate(t, in("cert.pem"), in("key.pem"))
	certificate(t, in("new-cert.pem"), in("new-key.pem"))
	if err := os.Mkdir(in("identities"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		text := fmt.Sprintf("%s: {tokens: ['sha256:%x'], allow: everything}\n", name, sha256.Sum256([]byte(secret+name)))
		if err := os.WriteFile(in("identities/"+name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"--listen", "127.0.0.1:0", "--identities-dir", in("identities"), "--tls-cert", in("cert.pem"), "--tls-key", in("key.pem")}
	log, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"culvert-server", "--log-format", "json", "--grace", "0s"}, args...), nil, io.Discard, w)
		w.Close()
	}()
	type line struct{ Msg, Address, Client, Part, Error string }
	lines := make(chan line, 1000)
	go func() {
		defer close(lines)
		for decoder := json.NewDecoder(log); ; {
			var l line
			if decoder.Decode(&l) != nil {
				return
			}
			lines <- l
		}
	}()
	var partly int
	await := func(msg, client string) line {
		t.Helper()
		for {
			l, ok := <-lines
			if !ok {
				t.Fatalf("no line %q", msg)
			}
			if l.Msg == "configuration not reloaded" {
				partly++
				if l.Part == "identities" || !strings.Contains(l.Error, "--tls-cert: ") {
					t.Errorf("%+v", l)
				}
			}
			if l.Msg == msg && l.Client == client {
				return l
			}
		}
	}
	address := await("server listening", "").Address
	server, err := url.Parse("wss://" + address)
	if err != nil {
		t.Fatal(err)
	}
	clients := make(chan error, 1)
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Servers: []*url.URL{server}, TLS: &tls.Config{InsecureSkipVerify: true},
		Credential: func() (string, error) { return secret + "alice", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	connected, leave := context.WithCancel(ctx)
	defer leave()
	go func() { clients <- client.Run(connected) }()
	await("session opened", "alice")

	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(in(from), in(to)); err != nil {
			t.Fatal(err)
		}
	}
	move("new-cert.pem", "cert.pem")
	if err := os.Remove(in("identities/alice.yaml")); err != nil {
		t.Fatal(err)
	}
	await("session expelled", "alice")
	leave()
	<-clients
	await("configuration reloaded in part", "")

	_, stderr, code := command(t, "", append([]string{"check"}, args...)...)
	if code != 2 || !strings.Contains(stderr, "--tls-cert: ") {
		t.Errorf("check: exit code %d, %s", code, stderr)
	}
	move("new-key.pem", "key.pem")
	await("configuration reloaded", "")
	if partly != 1 {
		t.Errorf("the log says %d times that the certificate is no pair", partly)
	}
	want, err := tls.LoadX509KeyPair(in("cert.pem"), in("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for used := false; !used; {
		conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatalf("the certificate before is still used: %v", err)
		}
		used = conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Equal(want.Leaf)
		conn.Close()
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}
