//go:build !linux && !darwin

package carrier

import "net"

// writeTry would write to a socket what it takes without blocking.
type writeTry struct{}

func newWriteTry(net.Conn) *writeTry { return nil }

func (*writeTry) write(v net.Buffers) (net.Buffers, error) { return v, nil }

// readTry would read from a socket what has arrived.
type readTry struct{}

func newReadTry(net.Conn) *readTry { return nil }

func (*readTry) read([]byte) (n int, err error, ready bool) { return 0, nil, false }
