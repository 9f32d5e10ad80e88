package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux"
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
			if got := o.is(auth.OpDial, netip.MustParseAddrPort(addr)); got != want {
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

// The ports of listeners, and of backends on this machine, are the server's at each address.
func TestOwnPorts(t *testing.T) {
	o := newOwn()
	o.addresses = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP("192.0.2.2"), Mask: net.CIDRMask(24, 32)}}, nil
	}
	o.add(netip.MustParseAddrPort("127.0.0.1:443"))
	if err := o.addBind(t.Context(), "127.0.0.1:0"); err != nil { // of a port that is not known
		t.Fatal(err)
	}
	lookup := names(map[string][]string{
		"here.example": {"198.51.100.1", "192.0.2.2"}, "there.example": {"198.51.100.1"}, "localhost": {"198.51.100.1"},
	})
	backends := []string{
		"localhost:3000", "127.0.0.1:3001", "192.0.2.2:3002", "here.example:3003", "missing.example:3004",
		"there.example:4000", "192.0.2.3:4001", "[::ffff:127.0.0.1]:3005", "[::1]:3006",
	}
	if err := o.setBackends(t.Context(), lookup, backends); err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]bool{
		443: true, 0: false, 80: false, 3000: true, 3001: true, 3002: true, 3003: true, 3004: true, 3005: true, 3006: true, 4000: false, 4001: false,
	} {
		for _, ip := range []string{"127.0.0.1", "::1", "192.0.2.2", "192.0.2.9", "0.0.0.0", "::"} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
			if got := o.is(auth.OpListen, addr); got != want {
				t.Errorf("listen at %s: %v, want %v", addr, got, want)
			}
		}
	}
	if o.is(auth.OpDial, netip.MustParseAddrPort("127.0.0.1:3000")) {
		t.Error("a backend is not to be dialled")
	}
	if err := o.setBackends(t.Context(), lookup, nil); err != nil || o.is(auth.OpListen, netip.MustParseAddrPort("127.0.0.1:3000")) {
		t.Error("a backend that is gone has a port")
	}
	if err := o.setBackends(t.Context(), lookup, []string{"localhost"}); err == nil {
		t.Error("a backend without a port")
	}
}

// A client does not take the visitors of what listens at one loopback address by listening
// at another address of the machine.
func TestNoListenerOnAPortOfTheServer(t *testing.T) {
	_, fallback, _ := net.SplitHostPort(listenLoopback(t).Addr().String())
	a := newAuditing(t)
	_, at := startServer(t, func(c *ServerConfig) {
		c.Guard, c.Backends, c.Audit = rules(t, "", "allow *:*"), []string{"localhost:" + fallback}, a.Log
	})
	_, carriers, _ := net.SplitHostPort(at)
	for i, bind := range []string{"[::1]:" + fallback, "127.0.0.2:" + fallback, "[::1]:" + carriers, "127.0.0.2:" + carriers} {
		err := refusedWith(t, at, listeningAt(t, bind))
		if !errors.Is(err, ErrListen) || mux.CodeOf(err) != mux.Denied || !strings.Contains(err.Error(), deniedOwnPort) {
			t.Errorf("%s: client ended with %v", bind, err)
		}
		if conn, err := net.Dial("tcp", bind); err == nil {
			conn.Close()
			t.Errorf("%s: something listens there", bind)
		}
		if e := a.event(t, auditListenDenied, i); e["rule"] != "a port of the server's own, which no rule names" || e["target"] != bind {
			t.Errorf("%s: in the audit log: %v", bind, e)
		}
	}
	// Neither while the backend is down, nor if the server began to use the port later.
	closed := closedPort(t)
	guard := rules(t, "", "allow localhost:*")
	server, err := NewServer(ServerConfig{Listen: "127.0.0.1:0", Guard: guard})
	if err != nil {
		t.Fatal(err)
	}
	ls := newTestListeners(t, guard)
	p := newPeer(t, "alice")
	addr, _ := mustListen(t, ls, p, 1, closed)
	if err := server.SetBackends(t.Context(), []string{closed}); err != nil {
		t.Fatal(err)
	}
	server.Use(directory(t, "", "allow localhost:*", "alice"))
	ls.accepting.Wait()
	if _, err := ls.listen(t.Context(), p.peer, 2, addr); mux.CodeOf(err) != mux.Denied {
		t.Errorf("listening where a backend was: %v", err)
	}
	// A rule that names the port allows it.
	_, port, _ := net.SplitHostPort(closed)
	server.Use(directory(t, "", "allow localhost:"+port, "alice"))
	mustListen(t, ls, p, 3, addr)
}

// listeningAt gives a client a remote forward at "host:port".
func listeningAt(t *testing.T, bind string) func(*ClientConfig) {
	t.Helper()
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *ClientConfig) { c.Remote = []Forward{{Bind: host, Port: number, Target: "127.0.0.1:1"}} }
}
