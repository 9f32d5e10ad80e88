package reserve

import "syscall"

// Descriptors is how many are kept, or a quarter where the process may have less than four
// times as many.
const Descriptors = 32

// Check returns an error that wraps EMFILE if conn has one of the last descriptors. What
// is not a socket of the system has none. The caller closes conn then.
func Check(conn any) error {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it is closed, and has no descriptor any more
	}
	return Control("", "", raw)
}

// Control is Check as the Control of a net.Dialer or a net.ListenConfig.
func Control(_, _ string, conn syscall.RawConn) error {
	var last bool
	if err := conn.Control(func(fd uintptr) { last = isLast(fd) }); err != nil || !last {
		return err
	}
	return &lastError{}
}

// lastError means that only the last descriptors were left.
type lastError struct{}

func (*lastError) Error() string { return syscall.EMFILE.Error() + ", except for the last ones" }
func (*lastError) Unwrap() error { return syscall.EMFILE }
