//go:build !unix

package tunnel

import (
	"errors"
	"net"
)

// source reads a connection through a pooled buffer.
type source struct {
	conn  net.Conn
	room  func() int // not asked here: nothing can be read without a buffer
	chunk *[]byte
}

// errNoRoom is no error of read here.
var errNoRoom = errors.New("no room")

// readNow is not called here.
func (s *source) readNow(int) []byte { return nil }

func newSource(conn net.Conn) *source { return &source{conn: conn} }

// read returns the next bytes, valid until release, which must be called if
// there are any.
func (s *source) read() ([]byte, error) {
	s.chunk = chunks.take()
	n, err := s.conn.Read(*s.chunk)
	if n == 0 {
		s.release()
		return nil, err
	}
	return (*s.chunk)[:n], err
}

func (s *source) release() {
	if s.chunk != nil {
		chunks.give(s.chunk)
		s.chunk = nil
	}
}

// awaitReset cannot see a reset after the end of file here; the next write will.
func (s *source) awaitReset() error { return nil }

// sink writes to a connection. What that takes without waiting, nobody knows here.
type sink struct{ net.Conn }

func newSink(conn net.Conn) sink { return sink{conn} }

// TryWrite takes nothing.
func (sink) TryWrite([]byte) (int, error) { return 0, nil }
