package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/config"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

const secret = "sesame-0123456789abcdef"

// FILE in arguments and expectations stands for the path of the file with the case's
// content.
type runCase struct {
	name    string
	content string
	mode    os.FileMode // 0: 0600
	env     map[string]string
	args    []string
	code    int
	stderr  []string // parts, one of each of its lines; nothing else may be there
}

func (c runCase) check(t *testing.T) {
	t.Helper()
	for name, value := range c.env {
		t.Setenv(name, value)
	}
	file := filepath.Join(t.TempDir(), "file")
	if c.content != "" {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.mode != 0 {
			if err := os.Chmod(file, c.mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	args := []string{"culvert-client"}
	for _, arg := range c.args {
		args = append(args, strings.ReplaceAll(arg, "FILE", file))
	}
	// Whoever goes on trying is stopped, with exit code 0.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var stdout, stderr strings.Builder
	code := run(ctx, args, strings.NewReader(""), &stdout, &stderr)
	if code != c.code {
		t.Errorf("exit code %d, want %d", code, c.code)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %s", &stdout)
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { // a busy machine may take longer than 3 s
		return strings.Contains(line, `msg="still connecting"`)
	})
	for _, want := range c.stderr {
		want = strings.ReplaceAll(want, "FILE", file)
		found := -1
		for i, line := range lines {
			if strings.Contains(line, want) {
				found = i
			}
		}
		if found < 0 {
			t.Errorf("stderr has no line with %q", want)
			continue
		}
		lines = append(lines[:found], lines[found+1:]...)
	}
	if len(lines) > 0 || t.Failed() {
		t.Errorf("stderr:\n%s", &stderr)
	}
	if strings.Contains(stderr.String(), "sesame") {
		t.Error("a secret is shown")
	}
}

func TestConfiguration(t *testing.T) {
	for _, c := range []runCase{
		{name: "no server", args: []string{"-L", "1:h:1"}, code: 2,
			stderr: []string{"culvert-client: --server: is not set; give --server URL"}},
		{name: "everything at once", content: "heartbeet: 1s\ngrace: soon\nlocal:\n  - 70000:h:1\n", code: 2,
			env:  map[string]string{"CULVERT_SERVER": "wss://:sesame@h"},
			args: []string{"--config", "FILE", "--max-backoff", "-1s", "-R", "x"},
			stderr: []string{
				"culvert-client: FILE:1: heartbeet: there is no such option; did you mean heartbeat?",
				"culvert-client: FILE:2: grace: ",
				"culvert-client: FILE:4: local: port 70000 is out of range",
				"culvert-client: CULVERT_SERVER: has no user name before the @; ",
				"culvert-client: --max-backoff: -1s is out of range",
				`culvert-client: -R: "x" is not a forward`,
			}},
		{name: "missing files", args: []string{"--server", "wss://h", "--token-file", "FILE", "--tls-ca", "FILE"}, code: 2,
			stderr: []string{"culvert-client: token: open FILE: no such file", "culvert-client: --tls-ca: open FILE: no such file"}},
		{name: "empty token file", content: "# nothing\n", args: []string{"--server", "wss://h", "--token-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: token: FILE: no token in it"}},
		{name: "no certificate", content: "nothing", args: []string{"--server", "wss://h", "--tls-ca", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --tls-ca: FILE: no certificate in it; give a PEM file"}},
		{name: "no header file", args: []string{"--server", "wss://h", "--header-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --header-file: open FILE: no such file"}},
		{name: "malformed header file", content: "X-A: sesame\nsesame\nOrigin: sesame\n", args: []string{"--server", "wss://h", "--header-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: FILE:2: does not begin with", "culvert-client: FILE:3: Origin cannot be given"}},
		{name: "huge header file", content: strings.Repeat("#\n", 40<<10), args: []string{"--server", "wss://h", "--header-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --header-file: read FILE: larger than 65536 bytes"}},
		{name: "secret header in plain text", content: "X-A: sesame\n", args: []string{"--server", "ws://192.0.2.1", "--header-file", "FILE", "-L", "1:h:1"}, code: 3,
			stderr: []string{"; use wss://, or --allow-plaintext"}},
		{name: "client's certificate", content: "nothing", args: []string{"--server", "wss://h", "--tls-cert", "FILE", "--tls-key", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --tls-cert: FILE with the key FILE: tls: failed to find any PEM data"}},
		{name: "pin", args: []string{"--server", "wss://h", "--tls-pin", "sha256/x"}, code: 2,
			stderr: []string{`culvert-client: --tls-pin: "sha256/x" is not the pin of a key`}},
		{name: "malformed token", env: map[string]string{"CULVERT_TOKEN": "sesame open"}, args: []string{"--server", "wss://h"}, code: 2,
			stderr: []string{"culvert-client: token: the token has a character"}},
		{name: "plaintext", env: map[string]string{"CULVERT_TOKEN": secret}, args: []string{"--server", "ws://192.0.2.1", "-L", "1:h:1"}, code: 3,
			stderr: []string{"; use wss://, or --allow-plaintext"}},
	} {
		t.Run(c.name, c.check)
	}
}

// TestRefused looks at the one line and the exit code of a first attempt that fails.
func TestRefused(t *testing.T) {
	website := httptest.NewServer(http.NotFoundHandler())
	defer website.Close()
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer locked.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.StartTLS()
	defer secure.Close()
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = secure.Config.ErrorLog
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.StartTLS()
	defer old.Close()
	pin, other := carrier.PinOf(secure.Certificate()).String(), carrier.Pin{}.String()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	ws := func(s *httptest.Server) string { return "ws" + strings.TrimPrefix(s.URL, "http") }

	const noForward = "there is no forward"
	for _, c := range []runCase{
		{name: "website", args: []string{"--server", ws(website)}, code: 3, stderr: []string{noForward, "answered 404"}},
		{name: "locked", args: []string{"--server", ws(locked)}, code: 3, stderr: []string{noForward, "answered 401"}},
		{name: "untrusted", args: []string{"--server", ws(secure)}, code: 3,
			stderr: []string{noForward, `: certificate signed by an unknown authority: issuer "O=Acme Co", subject "O=Acme Co", for "example.com", `}},
		{name: "old", args: []string{"--server", ws(old), "--tls-ca", ca, "--tls-min-version", "1.3"}, code: 1,
			stderr: []string{noForward, "protocol version"}},
		{name: "old enough", args: []string{"--server", ws(old), "--tls-ca", ca}, code: 3, stderr: []string{noForward, "answered 404"}},
		{name: "pinned", args: []string{"--server", ws(secure), "--tls-ca", ca, "--tls-pin", other, "--tls-pin", pin}, code: 3,
			stderr: []string{noForward, "answered 404"}},
		{name: "another key", args: []string{"--server", ws(secure), "--tls-insecure-skip-verify", "--tls-pin", other}, code: 3,
			stderr: []string{noForward, "NOT verified", "public key " + pin + " is not a pinned one: "}},
		{name: "two refuse", args: []string{"--server", ws(website), "--server", ws(locked)}, code: 3, stderr: []string{noForward, "answered 404", "answered 401"}},
		{name: "one refuses, nobody at the other", args: []string{"--server", ws(website), "--server", "ws://" + closed.Addr().String()}, code: 1,
			stderr: []string{noForward, "answered 404", "--retry-initial keeps trying"}},
		{name: "another address", args: []string{"--server", "ws://tunnel.example", "--dial-address", locked.Listener.Addr().String(), "--token-file", "FILE"},
			content: secret, code: 3, stderr: []string{noForward, locked.Listener.Addr().String() + ": answered 401"}},
		{name: "trusted", args: []string{"--server", ws(secure), "--tls-ca", ca}, code: 3, stderr: []string{noForward, "answered 404"}},
		{name: "other name", args: []string{"--server", ws(secure), "--tls-ca", ca, "--tls-server-name", "h.invalid"}, code: 3,
			stderr: []string{noForward, "--tls-server-name"}},
		{name: "unverified", args: []string{"--server", ws(secure), "--tls-insecure-skip-verify"}, code: 3,
			stderr: []string{noForward, "NOT verified", "answered 404"}},
		{name: "nobody there", args: []string{"--server", "ws://" + closed.Addr().String()}, code: 1,
			stderr: []string{noForward, "--retry-initial keeps trying"}},
		{name: "no address left", args: []string{"--server", ws(locked), "-L", strings.TrimPrefix(locked.URL, "http://") + ":h:1"}, code: 1,
			stderr: []string{"use another port, or end what listens there"}},
		{name: "token as a flag", args: []string{"--server", ws(locked), "--token", "sesame"}, code: 3,
			stderr: []string{noForward, "the token is on the command line", "can be guessed", "answered 401"}},
		{name: "token in a file for all", content: "token: " + secret, mode: 0o644,
			args: []string{"--server", ws(locked), "--config", "FILE"}, code: 3,
			stderr: []string{noForward, "FILE: holds a secret and can be read by others", "answered 401"}},
		{name: "signed token", env: map[string]string{"CULVERT_TOKEN": "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"}, args: []string{"--server", ws(locked)}, code: 3,
			stderr: []string{noForward, "answered 401"}},
		{name: "token command", args: []string{"--server", ws(locked), "--token-command", "echo " + secret}, code: 3, stderr: []string{noForward, "answered 401"}},
		{name: "token command that fails", args: []string{"--server", ws(locked), "--token-command", "echo sesame && exit 7"}, code: 1,
			stderr: []string{noForward, ": credential: token command: exit status 7; "}},
		{name: "token command in plain text", args: []string{"--server", "ws://192.0.2.1", "--token-command", "echo sesame", "-L", "1:h:1"}, code: 3,
			stderr: []string{"; use wss://, or --allow-plaintext"}},
		{name: "two credentials", args: []string{"--server", ws(locked), "--token-command", "echo sesame", "--token-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --token-command: is given together with --token-file (--token-file); give one of the two"}},
		{name: "token file for all", content: secret, mode: 0o644,
			args: []string{"--server", ws(locked), "--token-file", "FILE"}, code: 3,
			stderr: []string{noForward, "FILE: holds a secret and can be read by others", "answered 401"}},
	} {
		t.Run(c.name, c.check)
	}
}

// TestCredentialIsReadAgain checks that a token file, and what a command prints, may
// change while the client runs.
func TestCredentialIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	t.Run("--token-file", func(t *testing.T) { checkReadAgain(t, file, "--token-file", file) })
	t.Run("--token-command", func(t *testing.T) {
		checkReadAgain(t, file, "--token-command", printFile+" "+file)
	})
}

// checkReadAgain runs a client with a credential that is in the file.
func checkReadAgain(t *testing.T, file string, args ...string) {
	identities, _, err := auth.NewTokens(auth.Everything(), secret)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := auth.NewDirectory(auth.DirectoryConfig{Identities: identities})
	if err != nil {
		t.Fatal(err)
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{Listen: "127.0.0.1:0", Guard: auth.NewGuard(directory)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx) }()
	defer func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	addr, err := server.Addr(ctx)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(file, []byte("another-0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := newWatcher()
	go func() {
		code := run(ctx, append([]string{"culvert-client", "--server", "ws://" + addr.String(),
			"--retry-initial", "--max-backoff", "100ms", "--log-format", "json"}, args...), nil, log, log)
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
		ended <- nil
	}()
	log.await(t, `"next_attempt"`)
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	log.await(t, `"msg":"session opened"`)
	if strings.Contains(log.String(), secret) {
		t.Error("the log has the secret")
	}
}

// TestClientCertificateIsReadAgain checks that certificates may be short-lived.
func TestClientCertificateIsReadAgain(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	write := func(name string) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		for path, block := range map[string]*pem.Block{
			cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8},
		} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("first")
	cfg, problems := newTLS(&config.Client{TLSCert: cert, TLSKey: key})
	if problems != nil {
		t.Fatal(problems)
	}
	for _, name := range []string{"first", "second"} {
		write(name)
		got, err := cfg.GetClientCertificate(nil)
		if err != nil || got.Leaf.Subject.CommonName != name {
			t.Errorf("%v, %v, want the certificate of %s", got.Leaf.Subject, err, name)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.GetClientCertificate(nil); err == nil {
		t.Error("a key that is gone is used")
	}
}
