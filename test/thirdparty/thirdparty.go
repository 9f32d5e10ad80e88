package thirdparty

import (
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// FreePort is a port of 127.0.0.1 that nothing listens on at the moment, and that
// neither this process was given before nor a system gives away by itself (Linux:
// 32768 and above).
func FreePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(10000 + rand.IntN(20000))
		if _, again := given.LoadOrStore(port, true); again {
			continue
		}
		if listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

var given sync.Map // ports of FreePort
