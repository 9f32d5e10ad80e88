package carrier_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/mux/carrier"
	"culvert/mux/carrier/eyeballs"
)

// An address that does not answer costs a quarter of a second, not a time-out, and that
// only once, whatever its family, and whether it is a server's or a proxy's.
func TestDialStaggersAddresses(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(culvert))
	defer srv.Close()
	live := netip.MustParseAddrPort(srv.Listener.Addr().String())
	for _, dead := range []string{"127.0.0.2", "::1"} {
		t.Run(dead, func(t *testing.T) {
			silent(t, netip.AddrPortFrom(netip.MustParseAddr(dead), live.Port()))
			name := fmt.Sprintf("several.test:%d", live.Port())
			for what, d := range map[string]*carrier.Dialer{
				"server": {URL: parseURL(t, "ws://"+name), AllowPlaintext: true},
				"proxy": {
					URL:   parseURL(t, "ws://server.test"),
					Proxy: func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: "http", Host: name}, nil },
				},
			} {
				d.Addresses = new(eyeballs.Memory)
				carrier.SetLookup(d, func(context.Context, string, string) ([]netip.Addr, error) {
					return []netip.Addr{netip.MustParseAddr(dead), netip.MustParseAddr("127.0.0.1")}, nil
				})
				dial := func() time.Duration {
					began := time.Now()
					if c, _, err := d.Dial(t.Context(), nil); err == nil {
						c.Abort(net.ErrClosed)
						_ = c.Close("")
					} else if what == "server" {
						t.Fatal(err)
					} // else it has come to an HTTP server that is no proxy
					return time.Since(began)
				}
				if took := dial(); took < eyeballs.Delay || took > 10*eyeballs.Delay {
					t.Errorf("%s: it took %v, the delay is %v", what, took, eyeballs.Delay)
				}
				if took := dial(); took >= eyeballs.Delay {
					t.Errorf("%s: the second dial took %v", what, took)
				}
			}
		})
	}
}

// silent has addr, of this machine, answer no connection until the test ends.
func silent(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", addr.String()) // the one that fits
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}
