//go:build linux || darwin

package carrier

import (
	"net"
	"syscall"
)

func setUnsentLimit(conn net.Conn, n int) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// A socket that is closed or a system that refuses leaves things as they are.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, n)
	})
}
