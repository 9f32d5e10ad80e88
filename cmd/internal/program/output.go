package program

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// surviveBrokenPipes makes a write to a pipe without a reader fail with EPIPE, also
// for standard output and standard error: without it such a write ends the process,
// even when SIGPIPE is ignored. restore undoes it.
//
// It does not use signal.Ignore, because the processes that this one starts would
// inherit that.
func surviveBrokenPipes() (restore func()) {
	signals := make(chan os.Signal, 1) // nobody reads it
	signal.Notify(signals, syscall.SIGPIPE)
	return func() { signal.Stop(signals) }
}

// output is the standard output of a command. It keeps the first error, so that a
// command cannot succeed without its output, and calls failed, so that a command that
// goes on for long stops.
type output struct {
	w      io.Writer
	failed func()

	mu  sync.Mutex // guards err
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.mu.Lock()
		if o.err == nil {
			o.err = fmt.Errorf("standard output: %w", err)
		}
		o.mu.Unlock()
		o.failed()
	}
	return n, err
}

func (o *output) error() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// Unfailing returns a writer that passes everything on to w and reports success even
// where w fails: for those who write a log and must not fail because of it.
func Unfailing(w io.Writer) io.Writer { return unfailing{w} }

type unfailing struct{ w io.Writer }

func (u unfailing) Write(p []byte) (int, error) {
	_, _ = u.w.Write(p)
	return len(p), nil
}
