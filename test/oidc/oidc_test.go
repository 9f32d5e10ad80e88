package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/auth"
	"culvert/auth/jwks"
	"culvert/test/agent"
	"culvert/test/thirdparty"
	"culvert/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const provider = "github.com/zitadel/oidc/v3/example/server@v3.51.17"

// startProvider runs the provider and returns its process and its name.
func startProvider(t *testing.T) (p *agent.Process, issuer string) {
	t.Helper()
	dir := t.TempDir()
	install := exec.CommandContext(t.Context(), "go", "install", provider)
	install.Dir = dir
	install.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: %v\n%s", install.Args, err, out)
		}
		t.Skipf("%v: %v\n%s", install.Args, err, out)
	}
	port := thirdparty.FreePort(t)
	cmd := exec.Command(filepath.Join(dir, "server"))
	cmd.Env = append(os.Environ(), "PORT="+port)
	p = agent.Start(t, "provider", cmd)
	p.ExpectText(20*time.Second, "server listening")
	issuer = "http://localhost:" + port + "/"
	awaitHTTP(t, issuer)
	return p, issuer
}

// awaitHTTP waits until the provider, which says that it listens before it does, answers.
func awaitHTTP(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", strings.Trim(strings.TrimPrefix(address, "http://"), "/"))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

const callback = "http://localhost:9999/auth/callback" // where nobody listens; its query says all

// signIn has a user sign in as a browser does (authorization code flow), and returns the
// ID token that is for the application "web".
func signIn(t *testing.T, issuer, user string) string {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	browser := &http.Client{Jar: jar, Transport: transport, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	ask := func(method, address string, form url.Values) (*http.Response, []byte) {
		request, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if form.Has("code") {
			request.SetBasicAuth("web", "secret")
		}
		response, err := browser.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, body
	}
	page, _ := ask(http.MethodGet, issuer+"auth?"+url.Values{
		"client_id": {"web"}, "redirect_uri": {callback}, "response_type": {"code"}, "scope": {"openid"}, "state": {"s"},
	}.Encode(), nil)
	response, body := ask(http.MethodPost, issuer+"login/username", url.Values{
		"id": {page.Request.URL.Query().Get("authRequestID")}, "username": {user}, "password": {"verysecure"},
	})
	location, err := response.Location()
	if err != nil {
		t.Fatalf("%s: %v\n%s", response.Status, err, body)
	}
	_, body = ask(http.MethodPost, issuer+"oauth/token", url.Values{
		"grant_type": {"authorization_code"}, "code": {location.Query().Get("code")}, "redirect_uri": {callback},
	})
	var tokens struct {
		ID string `json:"id_token"`
	}
	if err := json.Unmarshal(body, &tokens); err != nil || tokens.ID == "" {
		t.Fatalf("no ID token (%v) in %s", err, body)
	}
	return tokens.ID
}

// TestProvider checks that what the provider signs for a user whom an identity claims
// carries a stream, and that nothing else does; also while the provider is down.
func TestProvider(t *testing.T) {
	process, issuer := startProvider(t)
	alice, bob := signIn(t, issuer, "test-user@localhost"), signIn(t, issuer, "test-user2")
	programs, err := agent.Build(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(audience string) (address string) {
		keys, stop, err := jwks.Open(issuer, issuer, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		directory, err := auth.NewDirectory(auth.DirectoryConfig{
			Identities: []auth.Identity{{Name: "ops", Claims: []auth.Claims{{"sub": {"id1"}}}, Policy: auth.Everything()}},
			Issuers:    []auth.Issuer{{Issuer: issuer, Audience: audience, Keys: keys}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return startServer(t, auth.NewGuard(directory))
	}
	server, other := serve("web"), serve("another application")
	header, rest, _ := strings.Cut(alice, ".")
	claims, _, _ := strings.Cut(rest, ".")
	_, rest, _ = strings.Cut(bob, ".")
	_, signature, _ := strings.Cut(rest, ".")

	for _, when := range []string{"while the provider is up", "while it is down"} {
		t.Run(when, func(t *testing.T) {
			if when == "while it is down" {
				process.Kill()
			}
			if says := try(t, programs.Client, server, alice); says != "" {
				t.Errorf("the user of the identity is told %q", says)
			}
			for what, says := range map[string]string{
				"another user":           try(t, programs.Client, server, bob),
				"another application":    try(t, programs.Client, other, alice),
				"no signature":           try(t, programs.Client, server, header+"."+claims+"."),
				"another's signature":    try(t, programs.Client, server, header+"."+claims+"."+signature),
				"no token of a provider": try(t, programs.Client, server, "opaque-0123456789abcdef"),
			} {
				if !strings.Contains(says, "answered 401") {
					t.Errorf("%s: the client is told %q", what, says)
				}
			}
		})
	}
}

// startServer runs a server to the end of the test.
func startServer(t *testing.T, guard *auth.Guard) (address string) {
	t.Helper()
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: "127.0.0.1:0", Guard: guard,
		Settings: tunnel.Settings{Grace: time.Millisecond, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	at, err := server.Addr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return at.String()
}

// try has a client send a line through a tunnel that the token is to open, and back. If
// the client is refused, it returns what it says.
func try(t *testing.T, program, server, token string) (refusal string) {
	t.Helper()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		if conn, err := echo.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	defer func() { echo.Close(); <-echoed }()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--server", "ws://" + server, "--token-file", file, "-L", "0:" + echo.Addr().String()}
	client := agent.Start(t, "client", agent.Command(program, args...))
	defer client.Kill()
	for line := (agent.Line{}); line.Msg != "session opened"; {
		line = client.ExpectText(20*time.Second, "")
		if strings.HasPrefix(line.Text, "culvert-client: ") {
			return line.Text
		}
	}
	conn, err := net.Dial("tcp", client.Find(20*time.Second, "forward listening").Attrs["address"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	sent, got := []byte("through the tunnel\n"), make([]byte, 19)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(sent, got) {
		t.Fatalf("echo %q, %v", got, err)
	}
	conn.Close()
	<-echoed
	return ""
}
