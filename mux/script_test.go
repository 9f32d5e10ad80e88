package mux

import (
	"errors"
	"io"
	"sync"
	"time"
)

// script is a link whose peer says what was written down beforehand and then is
// lost. What the session writes is dropped.
type script struct {
	mu   sync.Mutex
	left []byte
	hold bool // wait for Close instead of being lost at the end
	once sync.Once
	done chan struct{}
	err  error
}

func newScript(b []byte) *script { return &script{left: b, done: make(chan struct{})} }

var errScriptOver = errors.New("script over")

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.left) == 0 {
		if s.hold {
			<-s.done
		}
		s.end(errScriptOver)
		return 0, errScriptOver
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *script) end(err error) { s.once.Do(func() { s.err = err; close(s.done) }) }

func (s *script) Write(p []byte) (int, error) { return io.Discard.Write(p) }

func (s *script) WriteBuffers(v [][]byte) (n int, err error) {
	for _, p := range v {
		n += len(p)
	}
	return n, nil
}

func (s *script) Append([][]byte) error { return nil }
func (s *script) Full() bool            { return false }
func (s *script) OnRoom(func())         {}

func (s *script) Flush(<-chan struct{}) error { return nil }
func (s *script) Close(string) error          { s.end(errScriptOver); return nil }
func (s *script) Done() <-chan struct{}       { return s.done }
func (s *script) Err() error                  { <-s.done; return s.err }
func (s *script) RoundTrip() time.Duration    { return 0 }
func (s *script) Bandwidth() float64          { return 0 }
