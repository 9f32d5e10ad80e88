package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/auth"
)

// A dial that is under way ends with its grant.
func TestDialEndsWithItsGrant(t *testing.T) {
	addr := fullBacklog(t)
	g := guard(t, "allow *:*", "")
	grant, err := g.Dial("", auth.TCP, auth.HostOf(addr.Addr()), addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := Dial(ctx, grant)
		ended <- err
	}()
	for !connecting(t, addr) && ctx.Err() == nil {
		runtime.Gosched()
	}
	g.Use(directory(t, "deny *:*", ""))
	if err := <-ended; !errors.Is(err, auth.ErrDenied) {
		t.Errorf("the dial ended with %v", err)
	}
}

// connecting reports whether the system waits for an answer of addr.
func connecting(t *testing.T, addr netip.AddrPort) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const synSent = "02"
	return strings.Contains(string(table), fmt.Sprintf(":%04X %s ", addr.Port(), synSent))
}

// fullBacklog is the address of a listener that answers no further connection.
func fullBacklog(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in4 := sa.(*syscall.SockaddrInet4)
	addr := netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port))
	conn, err := net.Dial("tcp", addr.String()) // the one that fits
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return addr
}
