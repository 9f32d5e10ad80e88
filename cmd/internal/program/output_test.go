package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"culvert/config"
)

// full is a file on a disk that is full, or a pipe without a reader.
type full struct{ err error }

func (f full) Write([]byte) (int, error) { return 0, f.err }

// A command whose output is lost fails, and one that would go on stops.
func TestLostOutput(t *testing.T) {
	noSpace := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
	noReader := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
	careless := func(_ config.Sources, stdout, stderr io.Writer) (*Job, error) {
		return &Job{Log: NewLogger(stderr, "text", 0), Run: func(ctx context.Context) error {
			fmt.Fprintln(stdout, "nobody looks at the error")
			<-ctx.Done()
			return nil
		}}, nil
	}
	p := Program{Name: "p", Commands: []*Command{{Name: "sub", Summary: "goes on until it is stopped", Prepare: careless}}}
	for _, args := range [][]string{{"--help"}, {"--version"}, {"sub"}, {"sub", "--help"}} {
		for _, tt := range []struct {
			err    error
			stderr string
		}{
			{noSpace, "p: standard output: write /dev/stdout: no space left on device\n"},
			{noReader, ""}, // as any program in front of head
		} {
			var stderr strings.Builder
			if code := p.Run(t.Context(), append([]string{"p"}, args...), full{tt.err}, &stderr); code != exitFailed || stderr.String() != tt.stderr {
				t.Errorf("%q and %v: exit code %d, stderr %q", args, tt.err, code, &stderr)
			}
		}
	}
}

// A log that is lost changes nothing, not even the exit code.
func TestLostLog(t *testing.T) {
	failure := errors.New("it broke")
	for _, err := range []error{nil, failure} {
		job := &Job{Log: NewLogger(full{syscall.ENOSPC}, "text", 0), Warnings: []string{"take care"}, Run: func(context.Context) error { return err }}
		p := Program{Name: "p", Prepare: func(config.Sources, io.Writer) (*Job, error) { return job, nil }}
		want, _ := judge(err)
		if code := p.Run(t.Context(), []string{"p"}, io.Discard, full{syscall.ENOSPC}); code != want {
			t.Errorf("exit code %d, want %d", code, want)
		}
	}
	if n, err := Unfailing(full{syscall.ENOSPC}).Write([]byte("text")); n != 4 || err != nil {
		t.Errorf("%d bytes written, %v", n, err)
	}
}
