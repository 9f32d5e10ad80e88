package main

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// Every file may be a pipe, as a shell's <(command) is, although most files are read
// again at each dial.
func TestPipes(t *testing.T) {
	paths := make(map[string]string)
	for option, content := range userFiles(t, time.Now().AddDate(1, 0, 0)) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if _, err := w.WriteString(content); err != nil {
			t.Fatal(err)
		}
		w.Close()
		paths[option] = fmt.Sprintf("/proc/self/fd/%d", r.Fd())
	}
	checkFiles(t, paths)
}
