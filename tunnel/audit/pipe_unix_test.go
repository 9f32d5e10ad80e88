//go:build unix

package audit

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A pipe whose reader has gone costs lines. To reopen it does not wait for another reader, who may never
// come, and lines are written again when one is there.
func TestPipeWithoutReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() *os.File {
		t.Helper()
		r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // waits for no writer
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	reader := read()
	f := open1(t, path, 100, 1)
	write(t, f, "1st\n")
	reader.Close()
	if _, err := f.Write([]byte("lost\n")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("without a reader: %v", err)
	}
	reopened := make(chan error, 1)
	go func() { reopened <- f.Reopen() }()
	select {
	case err := <-reopened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		read().Close() // ends the wait
		<-reopened
		t.Fatal("Reopen waits for a reader")
	}
	reader = read()
	defer reader.Close()
	write(t, f, "2nd\n")
	lines := make([]byte, 10)
	if n, err := reader.Read(lines); string(lines[:n]) != "1st\n2nd\n" { // the pipe has kept the first one
		t.Errorf("%q, %v", lines[:n], err)
	}
}
