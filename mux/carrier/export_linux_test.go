package carrier

import (
	"net"

	"golang.org/x/sys/unix"
)

// Arrived says whether everything that from has handed to the system can be read
// by to's, over TCP.
func Arrived(from, to *Conn) bool {
	out, in := tcpInfo(from), tcpInfo(to)
	return out.Notsent_bytes == 0 && in.Bytes_received >= out.Bytes_sent
}

func tcpInfo(c *Conn) (info *unix.TCPInfo) {
	raw, err := c.cork.socket.(*net.TCPConn).SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	}
	if err != nil {
		panic(err)
	}
	return info
}
