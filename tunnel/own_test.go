package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert/test/bubble"
)

func TestOwn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		machine := []net.Addr{
			&net.IPNet{IP: net.ParseIP("192.0.2.2"), Mask: net.CIDRMask(24, 32)},
			&net.IPNet{IP: net.ParseIP("fe80::2"), Mask: net.CIDRMask(64, 128)},
		}
		o := newOwn()
		o.addresses = func() ([]net.Addr, error) { return machine, nil }
		o.add(netip.MustParseAddrPort("[::]:443"))
		o.add(netip.MustParseAddrPort("192.0.2.2:8080"))
		o.add(netip.MustParseAddrPort("127.0.0.1:9090"))
		check := func(addr string, want bool) {
			t.Helper()
			if got := o.is(netip.MustParseAddrPort(addr)); got != want {
				t.Errorf("%s: %v, want %v", addr, got, want)
			}
		}
		for addr, want := range map[string]bool{
			"127.0.0.1:443": true, "127.1.2.3:443": true, "[::1]:443": true, "192.0.2.2:443": true, "[fe80::2]:443": true, "0.0.0.0:443": true,
			"192.0.2.3:443": false, "192.0.2.2:444": false,
			"192.0.2.2:8080": true, "127.0.0.1:8080": false,
			"127.0.0.1:9090": true, "127.0.0.2:9090": false, "192.0.2.2:9090": false,
			"0.0.0.0:9090": true, "[::]:9090": true, "0.0.0.0:8080": false, // a connection to these is one to loopback
		} {
			check(addr, want)
		}
		// The machine has another address.
		machine = machine[1:]
		check("192.0.2.2:443", true)
		time.Sleep(ownFresh + time.Millisecond)
		check("192.0.2.2:443", false)
		o.addresses = func() ([]net.Addr, error) { return nil, errors.New("none") }
		time.Sleep(ownFresh + time.Millisecond)
		check("[::1]:443", true)
		check("[fe80::2]:443", false)
	})
}
