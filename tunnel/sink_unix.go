//go:build unix

package tunnel

import (
	"errors"
	"net"
	"syscall"
)

// sink writes to a connection, also what that takes without waiting.
type sink struct {
	net.Conn
	raw syscall.RawConn // nil if Conn is not one of the system's own sockets
	try func(fd uintptr) bool

	// Valid during TryWrite.
	p   []byte
	n   int
	err error
}

func newSink(conn net.Conn) *sink {
	s := &sink{Conn: conn, raw: rawConn(conn)}
	s.try = s.attempt
	return s
}

// TryWrite writes what the socket takes now.
func (s *sink) TryWrite(p []byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.p, s.n, s.err = p, 0, nil
	err := s.raw.Write(s.try)
	s.p = nil
	if err == nil {
		err = s.err
	}
	return s.n, err
}

func (s *sink) attempt(fd uintptr) bool {
	for s.n < len(s.p) {
		n, err := syscall.Write(int(fd), s.p[s.n:])
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return true
		case err != nil:
			s.err = &net.OpError{Op: "write", Net: "tcp", Err: err}
			return true
		default:
			s.n += n
		}
	}
	return true
}
