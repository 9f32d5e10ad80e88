package auth

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestWritable(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // where modes say nothing
	}
	dir := t.TempDir()
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o644: false, 0o664: true, 0o602: true, 0o666: true} {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{path, dir} {
			if err := os.Chmod(path, mode|0o100); err != nil {
				t.Fatal(err)
			}
			warnings := Writable(path, "", path+".missing")
			if got := len(warnings) == 1 && strings.HasPrefix(warnings[0], path+": can be changed by others"); got != warned || len(warnings) > 1 {
				t.Errorf("%s, mode %o: %q, want a warning: %v", path, mode, warnings, warned)
			}
		}
	}
}
