package main

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/auth"
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
			env:  map[string]string{"CULVERT_SERVER": "wss://u:sesame@h"},
			args: []string{"--config", "FILE", "--max-backoff", "-1s", "-R", "x"},
			stderr: []string{
				"culvert-client: FILE:1: heartbeet: there is no such option; did you mean heartbeat?",
				"culvert-client: FILE:2: grace: ",
				"culvert-client: FILE:4: local: port 70000 is out of range",
				"culvert-client: CULVERT_SERVER: has a credential in it; ",
				"culvert-client: --max-backoff: -1s is out of range",
				`culvert-client: --remote: "x" is not a forward`,
			}},
		{name: "missing files", args: []string{"--server", "wss://h", "--token-file", "FILE", "--tls-ca", "FILE"}, code: 2,
			stderr: []string{"culvert-client: token: open FILE: no such file", "culvert-client: --tls-ca: open FILE: no such file"}},
		{name: "empty token file", content: "# nothing\n", args: []string{"--server", "wss://h", "--token-file", "FILE"}, code: 2,
			stderr: []string{"culvert-client: token: FILE: no token in it"}},
		{name: "no certificate", content: "nothing", args: []string{"--server", "wss://h", "--tls-ca", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --tls-ca: FILE: no certificate in it; give a PEM file"}},
		{name: "malformed token", env: map[string]string{"CULVERT_TOKEN": "sesame open"}, args: []string{"--server", "wss://h"}, code: 2,
			stderr: []string{"culvert-client: token: token 1 has a character"}},
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
		{name: "website", args: []string{"--server", ws(website)}, code: 3, stderr: []string{noForward, "404"}},
		{name: "locked", args: []string{"--server", ws(locked)}, code: 3, stderr: []string{noForward, "401"}},
		{name: "untrusted", args: []string{"--server", ws(secure)}, code: 3, stderr: []string{noForward, "--tls-ca"}},
		{name: "trusted", args: []string{"--server", ws(secure), "--tls-ca", ca}, code: 3, stderr: []string{noForward, "404"}},
		{name: "other name", args: []string{"--server", ws(secure), "--tls-ca", ca, "--tls-server-name", "h.invalid"}, code: 3,
			stderr: []string{noForward, "--tls-server-name"}},
		{name: "unverified", args: []string{"--server", ws(secure), "--tls-insecure-skip-verify"}, code: 3,
			stderr: []string{noForward, "NOT verified", "404"}},
		{name: "nobody there", args: []string{"--server", "ws://" + closed.Addr().String()}, code: 1,
			stderr: []string{noForward, "--retry-initial keeps trying"}},
		{name: "no address left", args: []string{"--server", ws(locked), "-L", strings.TrimPrefix(locked.URL, "http://") + ":h:1"}, code: 1,
			stderr: []string{"use another port, or end what listens there"}},
		{name: "token as a flag", args: []string{"--server", ws(locked), "--token", "sesame"}, code: 3,
			stderr: []string{noForward, "the token is on the command line", "can be guessed", "401"}},
		{name: "token in a file for all", content: "token: " + secret, mode: 0o644,
			args: []string{"--server", ws(locked), "--config", "FILE"}, code: 3,
			stderr: []string{noForward, "FILE: holds a secret and can be read by others", "401"}},
		{name: "token file for all", content: secret, mode: 0o644,
			args: []string{"--server", ws(locked), "--token-file", "FILE"}, code: 3,
			stderr: []string{noForward, "FILE: holds a secret and can be read by others", "401"}},
	} {
		t.Run(c.name, c.check)
	}
}

// TestCredentialIsReadAgain checks that a token file may change while the client
// runs.
func TestCredentialIsReadAgain(t *testing.T) {
	tokens, _, err := auth.NewTokens(secret)
	if err != nil {
		t.Fatal(err)
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{Listen: "127.0.0.1:0", Authenticate: tokens.Authenticate})
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

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("another-0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := newWatcher()
	go func() {
		code := run(ctx, []string{"culvert-client", "--server", "ws://" + addr.String(), "--token-file", file,
			"--retry-initial", "--max-backoff", "100ms", "--log-format", "json"}, nil, log, log)
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
