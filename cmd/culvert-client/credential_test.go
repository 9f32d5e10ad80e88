package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// printFile is the system's command that prints a file.
var printFile = map[bool]string{true: "type", false: "cat"}[runtime.GOOS == "windows"]

func TestTokenCommand(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the commands are those of a Unix shell")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name, command string
		ctx           context.Context
		want, err     string
		stderr        string
	}{
		{"one line", "echo sesame", t.Context(), "sesame", "", ""},
		{"first line", "printf ' sesame \\r\\nmore\\n'", t.Context(), "sesame", "", ""},
		{"no end of line", "printf sesame", t.Context(), "sesame", "", ""},
		{"standard error", "echo careful >&2; echo sesame", t.Context(), "sesame", "", "careful\n"},
		{"a lot", "echo sesame; head -c 1000000 /dev/zero", t.Context(), "sesame", "", ""},
		{"a process left behind", "sleep 20 & echo sesame", t.Context(), "sesame", "", ""},
		{"one that does not print", "sleep 20 & true", t.Context(), "", "token command: has printed nothing", ""},
		{"one after a failure", "sleep 20 & echo sesame; exit 3", t.Context(), "", "token command: exit status 3", ""},
		{"nothing", "true", t.Context(), "", "token command: has printed nothing", ""},
		{"an empty line", "echo; echo sesame", t.Context(), "", "token command: has printed nothing", ""},
		{"failure", "echo sesame; exit 3", t.Context(), "", "token command: exit status 3", ""},
		{"killed", "echo sesame; kill -9 $$", t.Context(), "", "token command: signal: killed", ""},
		{"not there", "no-such-command-here 2>/dev/null", t.Context(), "", "token command: exit status 127", ""},
		{"the end", "echo sesame", cancelled, "", "token command: context canceled", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			token, err := runTokenCommand(tt.ctx, tt.command, &stderr)
			if token != tt.want || tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
				t.Errorf("%q, %v, want %q, %s", token, err, tt.want, tt.err)
			}
			if stderr.String() != tt.stderr {
				t.Errorf("standard error is %q, want %q", &stderr, tt.stderr)
			}
		})
	}
}

// A command that hangs ends with the client, and so does what it has started.
func TestTokenCommandEnds(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the command is one of a Unix shell")
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := newWatcher()
	ended := make(chan error, 1)
	fifo := filepath.Join(t.TempDir(), "fifo")
	go func() {
		// Whoever has the FIFO open to write is alive.
		_, err := runTokenCommand(ctx, "mkfifo '"+fifo+"'; echo started >&2; (sleep 60; true) > '"+fifo+"'; true", started)
		ended <- err
	}()
	started.await(t, "started")
	alive, err := os.Open(fifo) // waits for the process
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the command goes on")
	}
	gone := make(chan error, 1)
	go func() {
		_, err := alive.Read(make([]byte, 1))
		gone <- err
	}()
	select {
	case err := <-gone:
		if !errors.Is(err, io.EOF) {
			t.Errorf("read: %v, want the end of file", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a process that the command has started goes on")
	}
}
