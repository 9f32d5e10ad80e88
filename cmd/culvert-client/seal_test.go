package main

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/tunnel"
)

// terminal is somebody who types.
type terminal struct{ io.Reader }

func (terminal) Stat() (fs.FileInfo, error) { return device{}, nil }

type device struct{ fs.FileInfo }

func (device) Mode() fs.FileMode { return fs.ModeDevice | fs.ModeCharDevice }

// startSealed runs a server with this key, which tells it or not, and returns its URL.
func startSealed(t *testing.T, key auth.PrivateKey, tells bool) string {
	t.Helper()
	d, err := auth.NewDirectory(auth.DirectoryConfig{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: "127.0.0.1:0", Guard: auth.NewGuard(d), Key: key.ECDH(), Introduce: tells,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	addr, err := server.Addr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return "ws://" + addr.String()
}

func runWith(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out, errs strings.Builder
	code = run(ctx, append([]string{"culvert-client"}, args...), stdin, &out, &errs)
	return code, out.String(), errs.String()
}

// The first time, people say whether the server's key is right; then it is known, and
// another one is refused.
func TestKnownServers(t *testing.T) {
	key, other := auth.NewPrivateKey("server"), auth.NewPrivateKey("other")
	url, quiet := startSealed(t, key, true), startSealed(t, other, false)
	known := filepath.Join(t.TempDir(), "new", "known_servers")
	args := []string{"--seal", "--known-servers", known, "--token-file", tokenFile(t), "-L", "0:h:1"}
	fingerprint := key.Public().Fingerprint()

	code, _, stderr := runWith(t, strings.NewReader("yes\n"), append(args, "--server", url)...)
	line := "culvert-key " + strings.Fields(key.Public().String())[1]
	if code != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, fingerprint) || !strings.Contains(stderr, "--server-key '"+line+"'") {
		t.Errorf("nobody to ask: exit code %d, %s", code, stderr)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if code, _, stderr := runWith(t, null, append(args, "--server", url)...); code != 2 || strings.Contains(stderr, "Type yes") {
		t.Errorf("nobody is asked: exit code %d, %s", code, stderr)
	}
	for _, said := range []string{"no\n", "\n", "", "y\n"} {
		code, _, stderr := runWith(t, terminal{strings.NewReader(said)}, append(args, "--server", url)...)
		if code != 2 || !strings.Contains(stderr, fingerprint) || !strings.Contains(stderr, "was not accepted") {
			t.Errorf("%q: exit code %d, %s", said, code, stderr)
		}
	}
	if _, err := os.Stat(known); err == nil {
		t.Error("it was written down all the same")
	}
	code, _, stderr = runWith(t, terminal{strings.NewReader("Yes\n")}, append(args, "--server", url)...)
	if code != 3 || !strings.Contains(stderr, fingerprint) || !strings.Contains(stderr, "401") { // the token is wrong
		t.Errorf("yes: exit code %d, %s", code, stderr)
	}
	text, err := os.ReadFile(known)
	if want := strings.TrimPrefix(url, "ws://") + " " + line + "\n"; err != nil || string(text) != want {
		t.Errorf("known: %q, %v", text, err)
	}
	if info, err := os.Stat(known); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	code, _, stderr = runWith(t, strings.NewReader(""), append(args, "--server", url)...)
	if code != 3 || strings.Contains(stderr, "not known") {
		t.Errorf("known: exit code %d, %s", code, stderr)
	}

	// The server has another key, or somebody else is there.
	text = []byte("# mine\n" + strings.TrimPrefix(url, "ws://") + " " + other.Public().String() + "\n")
	if err := os.WriteFile(known, text, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = runWith(t, terminal{strings.NewReader("yes\n")}, append(args, "--server", url)...)
	for _, want := range []string{fingerprint, other.Public().Fingerprint(), known + ":2"} {
		if code != 3 || !strings.Contains(stderr, want) {
			t.Errorf("changed: exit code %d, no %s in %s", code, want, stderr)
		}
	}
	code, _, stderr = runWith(t, terminal{strings.NewReader("yes\n")}, append(args, "--server", quiet)...)
	if code != 2 || !strings.Contains(stderr, "does not tell") {
		t.Errorf("a server that does not tell: exit code %d, %s", code, stderr)
	}
	if err := os.WriteFile(known, []byte("h:1 nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = runWith(t, strings.NewReader(""), append(args, "--server", url)...)
	if code != 2 || !strings.Contains(stderr, known+":1: does not begin with culvert-key") {
		t.Errorf("malformed: exit code %d, %s", code, stderr)
	}
}

func tokenFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeygen(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	file := filepath.Join(t.TempDir(), "key")
	for _, args := range [][]string{{"keygen", "--key-file", file, "--comment", "my laptop"}, {"keygen"}} {
		code, stdout, stderr := runWith(t, strings.NewReader(""), args...)
		key, err := auth.ParsePublicKey(strings.TrimSuffix(stdout, "\n"))
		if code != 0 || err != nil || strings.Count(stdout, "\n") != 1 || !strings.Contains(stderr, key.Fingerprint()) {
			t.Fatalf("exit code %d, %q, %q, %v", code, stdout, stderr, err)
		}
		if len(args) > 1 {
			if private, _, err := auth.ReadPrivateKey(file); err != nil || private.Public() != key || key.Comment != "my laptop" {
				t.Errorf("%v, %v", key, err)
			}
		}
		code, stdout, stderr = runWith(t, strings.NewReader(""), args...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, "is there already") {
			t.Errorf("again: exit code %d, %q, %q", code, stdout, stderr)
		}
	}
}

func TestSealConfiguration(t *testing.T) {
	for _, c := range []runCase{
		{name: "no key file", args: []string{"--server", "ws://h", "--key-file", "FILE", "--server-key", goodKey}, code: 2,
			stderr: []string{"culvert-client: --key-file: open FILE: no such file"}},
		{name: "not a server's key", args: []string{"--server", "ws://h", "--server-key", "SHA256:abc"}, code: 2,
			stderr: []string{`culvert-client: --server-key: is not a public key; write culvert-key`}},
		{name: "key and token", content: "x", args: []string{"--server", "ws://h", "--key-file", "FILE", "--token-file", "FILE", "--server-key", goodKey}, code: 2,
			stderr: []string{"culvert-client: --token-file: is given together with --key-file (--key-file)"}},
		{name: "known servers without seal", args: []string{"--server", "ws://h", "--known-servers", "FILE"}, code: 2,
			stderr: []string{"culvert-client: --known-servers: means nothing without --seal; give --seal too"}},
		{name: "a token over ws to anywhere", content: secret, args: []string{"--server", "ws://192.0.2.1", "--proxy", "http://127.0.0.1:1", "--token-file", "FILE", "--server-key", goodKey, "-L", "0:h:1"}, code: 1,
			stderr: []string{"forward listening", "culvert-client: proxy 127.0.0.1:1: "}},
	} {
		t.Run(c.name, c.check)
	}
}

const goodKey = "culvert-key qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo="
