package config

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A pipe is in no directory of the user's: its relative paths begin at the working
// directory.
func TestRelativePathsFromPipe(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("server: wss://h\ntls-ca: ca.pem\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	c, _, err := LoadClient(Sources{Flags: map[string][]string{"config": {fmt.Sprintf("/proc/self/fd/%d", r.Fd())}}})
	if want := filepath.Join(dir, "ca.pem"); err != nil || c.TLSCA != want {
		t.Errorf("%q, %v, want %q", c.TLSCA, err, want)
	}
}
