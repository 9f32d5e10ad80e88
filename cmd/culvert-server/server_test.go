package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/config"
	"culvert/tunnel"
)

const secret = "sesame-0123456789abcdef"

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfiguration(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	token := write(t, secret)
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"no credential, no service", nil, 2, "culvert-server: --token-file: no credential is configured; give --token-file FILE or identities in the file of --config, or --insecure-no-auth"},
		{"both", []string{"--token-file", token, "--insecure-no-auth"}, 2, "give one of the two"},
		{"empty token file", []string{"--token-file", write(t, "\n# x\n")}, 2, "no token in it"},
		{"the same token twice", []string{"--token-file", write(t, secret+"\n"+secret)}, 2, "line 2 is the same as the token in line 1"},
		{"missing token file", []string{"--token-file", token + ".missing"}, 2, "no such file"},
		{"missing certificate", []string{"--token-file", token, "--tls-cert", token + ".missing", "--tls-key", token}, 2, "--tls-cert: open "},
		{"no certificate", []string{"--token-file", token, "--tls-cert", token, "--tls-key", token}, 2, "--tls-cert: "},
		{"missing site", []string{"--token-file", token, "--site", token + ".missing"}, 2, "--site: stat "},
		{"no site", []string{"--token-file", token, "--site", token}, 2, "not a directory; give a directory"},
		{"no place for certificates", []string{"--token-file", token, "--acme-domain", "a.example", "--acme-cache", filepath.Join(token, "acme")}, 2, "--acme-cache: mkdir "},
		{"no authority of ACME", []string{"--token-file", token, "--acme-domain", "a.example", "--acme-cache", t.TempDir(),
			"--acme-directory", "https://a.example", "--acme-ca", token}, 2, "no certificate in it; give a PEM file with certificates"},
		{"no authority of clients", []string{"--token-file", token, "--acme-domain", "a.example", "--acme-cache", t.TempDir(), "--client-ca", token}, 2,
			"--client-ca: "},
		{"the port of ACME in use", []string{"--token-file", token, "--listen", "127.0.0.1:0", "--acme-domain", "a.example", "--acme-cache", t.TempDir(),
			"--acme-http", taken.Addr().String()}, 1, "use another port, or end what listens there"},
		{"an audit log in a folder that is not there", []string{"--token-file", token, "--audit", token + ".missing/log"}, 2, "--audit: open "},
		{"a size of no audit log", []string{"--token-file", token, "--audit-max-size", "1MiB"}, 2, "--audit-max-size: there is no file of an audit log; give --audit FILE"},
		{"how many files of standard output", []string{"--token-file", token, "--audit", "-", "--audit-keep", "1"}, 2, "--audit-keep: there is no file of an audit log"},
		{"an address in use", []string{"--token-file", token, "--listen", taken.Addr().String()}, 1, "use another port, or end what listens there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(t.Context(), append([]string{"culvert-server"}, tt.args...), nil, &stdout, &stderr)
			if code != tt.code || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, want %d; stdout %q; stderr %q, want %q", code, tt.code, &stdout, &stderr, tt.stderr)
			}
			if strings.Contains(stderr.String(), "sesame") {
				t.Error("a secret is shown")
			}
		})
	}
}

// TestWaysToGiveACredential checks that each of them keeps strangers out, and that
// only --insecure-no-auth lets them in.
func TestWaysToGiveACredential(t *testing.T) {
	for _, tt := range []struct {
		name    string
		args    []string
		env     map[string]string
		status  int
		warning string
	}{
		{"token file", []string{"--token-file", write(t, secret)}, nil, http.StatusUnauthorized, ""},
		{"hash in the token file", []string{"--token-file", write(t, "sha256:"+strings.Repeat("0f", 32)+" laptop")}, nil, http.StatusUnauthorized, ""},
		{"token", []string{"--token", secret}, nil, http.StatusUnauthorized, "the token is on the command line"},
		{"variable", nil, map[string]string{"CULVERT_TOKEN": secret}, http.StatusUnauthorized, ""},
		{"variable for the file", nil, map[string]string{"CULVERT_TOKEN_FILE": write(t, secret)}, http.StatusUnauthorized, ""},
		{"configuration", []string{"--config", write(t, "token: "+secret)}, nil, http.StatusUnauthorized, ""},
		{"short", nil, map[string]string{"CULVERT_TOKEN": "sesame"}, http.StatusUnauthorized, "can be guessed"},
		// Without a hello the upgrade fails, but not for want of a credential.
		{"none", []string{"--insecure-no-auth"}, nil, http.StatusBadRequest, "EVERYBODY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			log, w := io.Pipe()
			ended := make(chan int, 1)
			go func() {
				ended <- run(ctx, append([]string{"culvert-server", "--listen", "127.0.0.1:0", "--log-format", "json", "--grace", "0s"}, tt.args...), nil, io.Discard, w)
				w.Close()
			}()
			var text strings.Builder
			lines := json.NewDecoder(io.TeeReader(log, &text))
			address := ""
			for address == "" {
				var line struct{ Msg, Address string }
				if err := lines.Decode(&line); err != nil {
					t.Fatalf("%v after %s", err, &text)
				}
				address = line.Address
			}
			rest := make(chan struct{})
			go func() {
				_, _ = io.Copy(&text, log)
				close(rest)
			}()
			status := upgrade(t, address)
			if status != tt.status {
				t.Errorf("a stranger is answered %d, want %d", status, tt.status)
			}
			cancel()
			if code := <-ended; code != 0 {
				t.Errorf("exit code %d", code)
			}
			<-rest
			warned := strings.Count(text.String(), `"level":"WARN"`) > strings.Count(text.String(), `"msg":"login refused"`)
			if warned != (tt.warning != "") || !strings.Contains(text.String(), tt.warning) {
				t.Errorf("want the warning %q in:\n%s", tt.warning, &text)
			}
			if strings.Contains(text.String(), "sesame") {
				t.Error("the log has a secret")
			}
		})
	}
}

// upgrade asks for a carrier without a credential and returns the HTTP status.
func upgrade(t *testing.T, address string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
		"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "culvert.v1",
	} {
		request.Header.Set(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

// With --audit - standard output is the audit log and nothing else.
func TestAuditOnStandardOutput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log, stderr := io.Pipe()
	record, stdout := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"culvert-server", "--listen", "127.0.0.1:0", "--log-format", "json", "--token-file", write(t, secret), "--audit", "-"}, nil, stdout, stderr)
		stderr.Close()
		stdout.Close()
	}()
	var line struct{ Address string }
	if err := json.NewDecoder(log).Decode(&line); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, log)
	lines := json.NewDecoder(record)
	answered := make(chan int, 1)
	go func() { answered <- upgrade(t, line.Address) }()
	var event struct{ Event, Error string }
	if err := lines.Decode(&event); err != nil || event.Event != "login_refused" || event.Error != "no credential" {
		t.Errorf("%+v, %v", event, err)
	}
	if status := <-answered; status != http.StatusUnauthorized {
		t.Errorf("a stranger is answered %d", status)
	}
	cancel()
	if err := lines.Decode(&event); err != io.EOF {
		t.Errorf("after that %+v, %v", event, err)
	}
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Whose token leaves the list, or joins it, makes nobody somebody else.
func TestReloadedTokens(t *testing.T) {
	const alice, bob, carol = "alice-0123456789abcdef", "bob-0123456789abcdef", "carol-0123456789abcdef"
	file := write(t, alice+"\n"+bob)
	now := new(access)
	reload := func(tokens ...string) func(token string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(tokens, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		next, err := loadAccess(config.Sources{Flags: map[string][]string{"token-file": {file}}}, now, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		now = next
		guard := auth.NewGuard(next.directory)
		return func(token string) string {
			login, err := guard.Authenticate(t.Context(), auth.Presented{Bearer: token})
			if err != nil {
				return ""
			}
			return login.Identity
		}
	}
	for _, tt := range []struct {
		tokens []string
		want   map[string]string
	}{
		{[]string{alice, bob}, map[string]string{alice: "token-1", bob: "token-2"}},
		{[]string{bob, carol}, map[string]string{alice: "", bob: "token-2", carol: "token-3"}},
		{[]string{alice, carol, bob}, map[string]string{alice: "token-1", bob: "token-2", carol: "token-3"}},
	} {
		who := reload(tt.tokens...)
		for token, want := range tt.want {
			if got := who(token); got != want {
				t.Errorf("after %q: %s is %q, want %q", tt.tokens, token, got, want)
			}
		}
	}
}

// A client that listens where the keys of an issuer come from, at the other loopback
// address, loses its listener with the reload that names the issuer.
func TestIssuerAtAPortOfAClient(t *testing.T) {
	issuer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer issuer.Close()
	port := issuer.Addr().(*net.TCPAddr).Port
	file := write(t, "issuers: []\n")
	job, address := running(t, map[string][]string{"config": {file}})

	log, w := io.Pipe()
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Servers:    []*url.URL{{Scheme: "ws", Host: address}},
		Credential: func() (string, error) { return secret, nil },
		Remote:     []tunnel.Forward{{Bind: "::1", Port: port, Target: issuer.Addr().String()}},
		Settings:   tunnel.Settings{Logger: slog.New(slog.NewJSONHandler(w, nil))},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- client.Run(ctx)
		w.Close()
	}()
	defer func() {
		cancel()
		<-ended
	}()
	lines := json.NewDecoder(log)
	for line := (struct{ Msg string }{}); line.Msg != "forward listening"; {
		if err := lines.Decode(&line); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	listens := func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("::1", strconv.Itoa(port)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if !listens() {
		t.Fatal("the client does not listen")
	}
	content := fmt.Sprintf("issuers: [{issuer: i, audience: a, keys: 'http://localhost:%d/keys'}]\nidentities: {ops: {claims: [{a: b}], allow: everything}}\n", port)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reloaded(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); listens(); {
		if time.Now().After(limit) {
			t.Fatal("the client still listens")
		}
	}
}
