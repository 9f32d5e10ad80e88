package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"culvert/mux/carrier/eyeballs"
)

// fullBacklog is the address of a listener that answers no further connection.
func fullBacklog(t testing.TB) string {
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
	addr := netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)).String()
	conn, err := net.Dial("tcp", addr) // the one that fits
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return addr
}

// A target whose first address does not answer costs a quarter of a second, and that only
// once.
func TestDialStaggersTargets(t *testing.T) {
	dead := netip.MustParseAddrPort(fullBacklog(t))
	ln, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), dead.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := &dialer{
		guard: everything(t), identity: "alice", timeout: 20 * time.Second, memory: new(eyeballs.Memory),
		lookup: names(map[string][]string{"half.test": {dead.Addr().String(), "127.0.0.2"}}),
	}
	for i := range 2 {
		began := time.Now()
		conn, grant, err := d.dial(t.Context(), fmt.Sprintf("half.test:%d", dead.Port()))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if grant.Addr().Addr() != netip.MustParseAddr("127.0.0.2") {
			t.Errorf("the grant is for %v", grant.Addr())
		}
		grant.Release()
		if took := time.Since(began); (took >= eyeballs.Delay) != (i == 0) || took > 10*eyeballs.Delay {
			t.Errorf("dial %d took %v", i+1, took)
		}
	}
}
