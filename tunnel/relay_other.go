//go:build !unix

package tunnel

import (
	"errors"
	"net"
	"syscall"
)

// source reads a connection through a pooled buffer, which it takes when there is something
// to be read.
type source struct {
	conn  net.Conn
	raw   syscall.RawConn // nil if conn is not one of the system's own sockets
	room  func() int      // not asked here: nothing can be read without a buffer
	chunk *[]byte
}

// errNoRoom is no error of read here.
var errNoRoom = errors.New("no room")

// readNow is not called here.
func (s *source) readNow(int) []byte { return nil }

func newSource(conn net.Conn) *source { return &source{conn: conn, raw: rawConn(conn)} }

// read returns the next bytes, valid until release, which must be called if
// there are any.
func (s *source) read() ([]byte, error) {
	if s.raw != nil {
		waited := false // package net reads no bytes to find out when there are some, each time that it is told false
		if err := s.raw.Read(func(uintptr) bool {
			ready := waited
			waited = true
			return ready
		}); err != nil {
			return nil, err
		}
	}
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
