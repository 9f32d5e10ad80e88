package carrier

import (
	"net"
	"syscall"
	"testing"
)

func TestUnsentLimit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(newCork(newWire(conn), true), Options{}, false)
	for _, tt := range []struct{ limit, want int }{{16 << 10, 16 << 10}, {1 << 20, 1 << 20}, {0, 0}, {4096, 4096}, {-1, 0}} {
		c.SetUnsentLimit(tt.limit)
		err := raw.Control(func(fd uintptr) {
			got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat)
			if err != nil || got != tt.want {
				t.Errorf("%d: set to %d, %v", tt.limit, got, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	c.SetUnsentLimit(1)
}
