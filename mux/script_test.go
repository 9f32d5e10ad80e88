package mux

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// script is a link whose peer says what was written down beforehand and then is
// lost. What the session writes is dropped.
type script struct {
	left  []byte
	hold  bool // wait for Close instead of being lost at the end
	once  sync.Once
	done  chan struct{}
	heard chan struct{} // closed when everything was
	err   error

	reason   string                    // of Close, if that ended it
	attached atomic.Pointer[time.Time] // since when there is a carrier, zero for none; nil: for an hour
}

func newScript(b []byte) *script {
	return &script{left: b, done: make(chan struct{}), heard: make(chan struct{})}
}

var errScriptOver = errors.New("script over")

// Handle hears what was written down, and then the end.
func (s *script) Handle(receive func([]byte), _ func()) {
	go func() {
		defer close(s.heard)
		for len(s.left) > 0 {
			n := min(len(s.left), 1000)
			receive(s.left[:n])
			s.left = s.left[n:]
		}
		if s.hold {
			<-s.done
		}
		s.end(errScriptOver)
	}()
}

func (s *script) end(err error) { s.once.Do(func() { s.err = err; close(s.done) }) }

func (s *script) Append([][]byte) error { return nil }
func (s *script) Send()                 {}
func (s *script) Full() bool            { return false }
func (s *script) Account(Memory)        {}

// AttachedFor is an hour, unless the test says something else.
func (s *script) AttachedFor() time.Duration {
	if since := s.attached.Load(); since != nil {
		if since.IsZero() {
			return 0
		}
		return time.Since(*since)
	}
	return time.Hour
}

func (s *script) Flush(<-chan struct{}) error { return nil }

func (s *script) Close(reason string) error {
	s.once.Do(func() { s.reason, s.err = reason, errScriptOver; close(s.done) })
	return nil
}

// told is the reason with which the link was closed.
func (s *script) told() string { <-s.done; return s.reason }

func (s *script) Done() <-chan struct{}    { return s.done }
func (s *script) Err() error               { <-s.done; return s.err }
func (s *script) RoundTrip() time.Duration { return 0 }
func (s *script) Bandwidth() float64       { return 0 }
