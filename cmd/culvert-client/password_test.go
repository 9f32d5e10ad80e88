package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/tunnel"
)

const password = "open sesame, please"

// startServer runs a server that knows alice by her password, and returns its URL.
func startServer(t *testing.T) string {
	t.Helper()
	p, err := auth.ParsePassword(auth.HashPassword(password))
	if err != nil {
		t.Fatal(err)
	}
	directory, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{
		{Name: "alice", Passwords: []auth.Password{p}, Policy: auth.Everything()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{Listen: "127.0.0.1:0", Guard: auth.NewGuard(directory)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	addr, err := server.Addr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return "ws://" + addr.String()
}

// TestWaysToGiveAPassword checks that each of them lets alice in, and that nobody is
// who gives it in none of them, or another one.
func TestWaysToGiveAPassword(t *testing.T) {
	url := startServer(t)
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	alice := []string{"--user", "alice"}
	for _, tt := range []struct {
		name string
		args []string
		env  map[string]string
	}{
		{"file", append(alice, "--password-file", file(password+"\n")), nil},
		{"flag", append(alice, "--password", password), nil},
		{"variables", nil, map[string]string{"CULVERT_USER": "alice", "CULVERT_PASSWORD": password}},
		{"variable for the file", alice, map[string]string{"CULVERT_PASSWORD_FILE": file(password)}},
		{"configuration", []string{"--config", file("user: alice\npassword: " + password)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			log, ended := newWatcher(), make(chan int, 1)
			go func() {
				ended <- run(ctx, append([]string{"culvert-client", "--server", url, "--log-format", "json"}, tt.args...), nil, log, log)
			}()
			log.await(t, `"msg":"session opened"`)
			cancel()
			if code := <-ended; code != 0 {
				t.Errorf("exit code %d", code)
			}
			if text := log.String(); strings.Contains(text, "sesame") {
				t.Errorf("the log has the password:\n%s", text)
			}
		})
	}

	const noForward = "there is no forward"
	for _, c := range []runCase{
		{name: "none", code: 3, stderr: []string{noForward, "401"}},
		{name: "wrong", content: "wrong", args: append(alice, "--password-file", "FILE"), code: 3,
			stderr: []string{noForward, "give a token that the server knows with --token-file, or --user and --password-file"}},
		{name: "another user", content: password, args: []string{"--user", "bob", "--password-file", "FILE"}, code: 3, stderr: []string{noForward, "401"}},
		{name: "as a token", args: []string{"--token", strings.ReplaceAll(password, " ", "_")}, code: 3,
			stderr: []string{noForward, "on the command line", "401"}},
		{name: "two lines", content: password + "\n" + password, args: append(alice, "--password-file", "FILE"), code: 2,
			stderr: []string{"culvert-client: password: FILE: the password has a control character in it, or is more than one line; check --password-file, CULVERT_PASSWORD or wherever it is given"}},
		{name: "missing", args: append(alice, "--password-file", "FILE"), code: 2, stderr: []string{"password: open FILE: no such file"}},
		{name: "for all", content: "wrong", mode: 0o644, args: append(alice, "--password-file", "FILE"), code: 3,
			stderr: []string{noForward, "FILE: holds a secret and can be read by others", "401"}},
	} {
		c.args = append([]string{"--server", url}, c.args...)
		t.Run(c.name, c.check)
	}
}
