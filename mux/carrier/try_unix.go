//go:build linux || darwin

package carrier

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeTry writes to a socket what it takes without blocking.
type writeTry struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	// Valid during write.
	rest net.Buffers
	err  error
}

// maxVector is how many pieces are written with one system call: for more the
// list would be allocated each time.
const maxVector = 8

// newWriteTry returns nil if conn is not a socket of the system's.
func newWriteTry(conn net.Conn) *writeTry {
	raw := rawConn(conn)
	if raw == nil {
		return nil
	}
	a := &writeTry{raw: raw}
	a.try = a.once
	return a
}

func rawConn(conn net.Conn) syscall.RawConn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// write writes v, which it consumes, and returns what is left of it. It is not to
// be called while anybody else writes to the conn.
func (a *writeTry) write(v net.Buffers) (rest net.Buffers, err error) {
	a.rest, a.err = v, nil
	err = a.raw.Write(a.try)
	if err == nil {
		err = a.err
	}
	rest, a.rest = a.rest, nil
	return rest, err
}

// once writes until the socket is full.
func (a *writeTry) once(fd uintptr) bool {
	for len(a.rest) > 0 {
		var n int
		var err error
		if len(a.rest) == 1 {
			n, err = syscall.Write(int(fd), a.rest[0])
		} else {
			n, err = unix.Writev(int(fd), a.rest[:min(len(a.rest), maxVector)])
		}
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return true
		case err != nil:
			a.err = &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", err)}
			return true
		}
		for n > 0 {
			k := min(n, len(a.rest[0]))
			if a.rest[0] = a.rest[0][k:]; len(a.rest[0]) == 0 {
				a.rest = a.rest[1:]
			}
			n -= k
		}
	}
	return true
}

// readTry reads from a socket what has arrived.
type readTry struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	mu sync.Mutex // held by read: a Close and a drain may read at once

	// Valid during read.
	p   []byte
	n   int
	err error
}

// newReadTry returns nil if conn is not a socket of the system's.
func newReadTry(conn net.Conn) *readTry {
	raw := rawConn(conn)
	if raw == nil {
		return nil
	}
	r := &readTry{raw: raw}
	r.try = r.once
	return r
}

// read reads into p, unless nothing has arrived, which includes the end.
func (r *readTry) read(p []byte) (n int, err error, ready bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p = p
	err = r.raw.Read(r.try)
	r.p = nil
	switch {
	case err != nil:
		return 0, err, true
	case errors.Is(r.err, syscall.EAGAIN):
		return 0, nil, false
	case r.err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", r.err)}, true
	case r.n == 0 && len(p) > 0:
		return 0, io.EOF, true
	default:
		return r.n, nil, true
	}
}

func (r *readTry) once(fd uintptr) bool {
	for {
		if r.n, r.err = syscall.Read(int(fd), r.p); !errors.Is(r.err, syscall.EINTR) {
			return true
		}
	}
}
