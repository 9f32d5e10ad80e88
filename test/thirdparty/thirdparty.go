package thirdparty

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Program is the path of a third party's program, on PATH, in one of folders (patterns, of which the
// last match counts) or where daemons are. Without it the test is skipped, or fails in CI.
func Program(t testing.TB, name string, folders ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range append(folders, "/usr/sbin", "/usr/local/sbin") {
		found, err := filepath.Glob(filepath.Join(pattern, name))
		if err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// Config writes text to the file name in dir and returns its path. Of pairs, each first text is replaced
// by the second; DIR always stands for dir.
func Config(t testing.TB, dir, name, text string, pairs ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	text = strings.NewReplacer(append(pairs, "DIR", dir)...).Replace(text)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// FreePort is a port of 127.0.0.1 that nothing listens on at the moment.
func FreePort(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
