//go:build unix

package tunnel

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// source reads a connection without holding a buffer while there is nothing to
// read: it waits for readability and takes a pooled buffer only then.
type source struct {
	conn net.Conn
	raw  syscall.RawConn // nil if conn is not one of the system's own sockets
	try  func(fd uintptr) bool

	chunk *[]byte
	n     int
	err   error
}

func newSource(conn net.Conn) *source {
	s := &source{conn: conn, raw: rawConn(conn)}
	s.try = s.attempt
	return s
}

// read returns the next bytes, valid until release, which must be called if
// there are any. It returns io.EOF, or the error of a reset, without bytes.
func (s *source) read() ([]byte, error) {
	if s.raw == nil {
		s.chunk = chunks.take()
		s.n, s.err = s.conn.Read(*s.chunk)
	} else if err := s.raw.Read(s.try); err != nil {
		return nil, err
	}
	if s.n == 0 {
		s.release()
	}
	if s.chunk == nil {
		return nil, s.err
	}
	return (*s.chunk)[:s.n], s.err
}

// attempt is one try to read; false means nothing there yet.
func (s *source) attempt(fd uintptr) bool {
	s.chunk = chunks.take()
	for {
		s.n, s.err = syscall.Read(int(fd), *s.chunk)
		switch {
		case errors.Is(s.err, syscall.EINTR):
			continue
		case errors.Is(s.err, syscall.EAGAIN):
			s.n = 0
			s.release()
			return false
		case s.err != nil:
			s.n = 0
		case s.n == 0:
			s.err = io.EOF
		}
		return true
	}
}

func (s *source) release() {
	if s.chunk != nil {
		chunks.give(s.chunk)
		s.chunk = nil
	}
}

// awaitReset blocks after the end of file until the connection is reset by its
// peer, and returns that error, or closed here, and returns net.ErrClosed.
func (s *source) awaitReset() error {
	if s.raw == nil {
		return nil
	}
	var failure error
	// The runtime's poller reports changes only, so this wakes up for a reset
	// and not for the end of file that stays readable.
	err := s.raw.Read(func(fd uintptr) bool {
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		switch {
		case err != nil:
			failure = err
		case code != 0:
			failure = syscall.Errno(code)
		}
		return failure != nil
	})
	if err != nil {
		return err
	}
	return failure
}
