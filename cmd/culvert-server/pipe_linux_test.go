package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"culvert/config"
)

// Every file may be a pipe: it is read once, and its content counts when the server
// reads its files again.
func TestPipes(t *testing.T) {
	flags := arguments(t, userFiles(t), unchanged)
	delete(flags, "identities-dir")
	for option, values := range flags {
		content := readFile(t, values[0])
		if option == "config" {
			_, keys, _ := strings.Cut(content, "keys: '")
			keys, _, _ = strings.Cut(keys, "'")
			content = strings.Replace(content, keys, pipe(t, readFile(t, keys)), 1)
		}
		flags[option] = []string{pipe(t, content)}
	}
	job, err := prepare(config.Sources{Flags: flags}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	for range 2 {
		if warnings, err := reloaded(t.Context(), job); err != nil || len(warnings) > 0 {
			t.Errorf("read again: %v, %v", warnings, err)
		}
	}
}

// pipe returns the path of a pipe with this content, as a shell's <(command) does.
func pipe(t *testing.T, content string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := w.WriteString(content); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return fmt.Sprintf("/proc/self/fd/%d", r.Fd())
}
