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
	now  func(fd uintptr) bool
	room func() int // how many bytes there is room for; nil: for all

	chunk  *[]byte
	n      int
	err    error
	most   int   // that readNow may read
	last   error // of the connection, found by readNow; read returns it
	peeked [1]byte
}

func newSource(conn net.Conn) *source {
	s := &source{conn: conn, raw: rawConn(conn)}
	s.try, s.now = s.attempt, s.attemptNow
	return s
}

// errNoRoom says that there is something to be read, and no room for it.
var errNoRoom = errors.New("no room")

// read returns the next bytes, valid until release, which must be called if
// there are any. It returns io.EOF, or the error of a reset, without bytes, and
// errNoRoom if there are some that it has left where they are.
func (s *source) read() ([]byte, error) {
	if s.last != nil {
		return nil, s.last
	}
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
	room := largeChunk
	if s.room != nil {
		room = s.room()
	}
	if room == 0 {
		return s.look(fd)
	}
	return s.receive(fd, room)
}

// receive reads up to most bytes into a chunk.
func (s *source) receive(fd uintptr, most int) bool {
	s.chunk = chunks.take()
	p := (*s.chunk)[:min(most, len(*s.chunk))]
	s.n, s.err = syscall.Read(int(fd), p)
	for errors.Is(s.err, syscall.EINTR) {
		s.n, s.err = syscall.Read(int(fd), p)
	}
	if s.nothing() {
		s.release()
		return false
	}
	return true
}

// look finds out whether there is something to be read, and leaves it there.
func (s *source) look(fd uintptr) bool {
	s.n, _, s.err = syscall.Recvfrom(int(fd), s.peeked[:], syscall.MSG_PEEK)
	for errors.Is(s.err, syscall.EINTR) {
		s.n, _, s.err = syscall.Recvfrom(int(fd), s.peeked[:], syscall.MSG_PEEK)
	}
	if s.nothing() {
		return false
	}
	if s.n > 0 {
		s.n, s.err = 0, errNoRoom
	}
	return true
}

// nothing says that the system had nothing to read, not even the end.
func (s *source) nothing() bool {
	switch {
	case errors.Is(s.err, syscall.EAGAIN):
		s.n = 0
		return true
	case s.err != nil:
		s.n = 0
	case s.n == 0:
		s.err = io.EOF
	}
	return false
}

// readNow returns what there is, up to most bytes, valid until release. It does not
// wait.
func (s *source) readNow(most int) []byte {
	s.most = most
	err := s.raw.Read(s.now)
	if err == nil && s.chunk != nil && s.n == 0 { // the end, or what comes instead
		err = s.err
		s.release()
	}
	if s.last = err; s.chunk == nil {
		return nil
	}
	return (*s.chunk)[:s.n]
}

// attemptNow is one try to read, for readNow.
func (s *source) attemptNow(fd uintptr) bool {
	s.receive(fd, s.most)
	return true
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
