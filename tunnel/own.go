package tunnel

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert/auth"
)

// ownFresh is for how long the machine's addresses are believed.
const ownFresh = time.Second

// backendLookup is how long the name of a backend may take to resolve.
const backendLookup = 5 * time.Second

// own knows what no client may take from a server: its listeners, which no stream leads
// to, and its ports, on which no client listens. Those are the ports of its listeners and
// of backends on this machine.
//
// A port is the server's own at every address. Visitors of a listener at 127.0.0.1 who
// ask for localhost may be sent to [::1]. And where the server listens at all addresses,
// another listener at one of them gets the connections to that one: the BSDs and macOS
// allow that with SO_REUSEADDR, which Go sets for every listener there.
type own struct {
	addresses func() ([]net.Addr, error) // of the machine

	mu        sync.Mutex
	listeners []netip.AddrPort
	backends  []netip.AddrPort    // without an address: a name that did not resolve
	machine   map[netip.Addr]bool // as it was at
	at        time.Time
}

func newOwn() *own { return &own{addresses: net.InterfaceAddrs} }

// add makes addr, where the server listens from now on, its own. The unspecified
// address is that of every one of the machine's.
func (o *own) add(addr netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listeners = append(o.listeners, netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port()))
}

// addBind is add for "host:port", as a user says where to listen.
func (o *own) addBind(ctx context.Context, bind string) error {
	_, addr, err := bindAddr(ctx, bind, nil)
	if err == nil {
		o.add(addr)
	}
	return err
}

// setBackends replaces the backends, each "host:port". A name is resolved now, and never
// again. One that does not resolve is taken to be this machine, since it may be later.
func (o *own) setBackends(ctx context.Context, lookup lookup, backends []string) error {
	ctx, cancel := context.WithTimeout(ctx, backendLookup)
	defer cancel()
	var all []netip.AddrPort
	for _, b := range backends {
		host, port, err := splitTarget(b)
		if err != nil {
			return err
		}
		addrs, err := lookup.addresses(ctx, host)
		switch {
		case host.String() == localhost: // whatever a resolver says
			addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
		case err != nil:
			addrs = []netip.Addr{{}}
		}
		for _, ip := range addrs {
			all = append(all, netip.AddrPortFrom(ip.Unmap().WithZone(""), port))
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.backends = all
	return nil
}

// is tells a guard what is the server's own ([auth.Guard.Protect]).
func (o *own) is(op string, addr netip.AddrPort) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op == auth.OpListen {
		return o.takes(addr.Port())
	}
	return o.reaches(addr)
}

// takes reports whether port is one of the server's own. Called with mu held.
func (o *own) takes(port uint16) bool {
	if port == 0 {
		return false
	}
	return slices.ContainsFunc(o.listeners, func(l netip.AddrPort) bool { return l.Port() == port }) ||
		slices.ContainsFunc(o.backends, func(b netip.AddrPort) bool {
			return b.Port() == port && (!b.Addr().IsValid() || o.ofMachine(b.Addr()))
		})
}

// reaches reports whether a connection to addr, which has no zone, is one to a listener
// of the server. Addresses that others translate to the machine's, as a provider
// does, are not known. Called with mu held.
func (o *own) reaches(addr netip.AddrPort) bool {
	for _, l := range o.listeners {
		if l.Port() != addr.Port() {
			continue
		}
		switch {
		case l == addr,
			l.Addr().IsUnspecified() && o.ofMachine(addr.Addr()),
			l.Addr().IsLoopback() && addr.Addr().IsUnspecified():
			return true
		}
	}
	return false
}

// ofMachine reports whether ip is an address of this machine, as the unspecified one
// is: systems connect to loopback then. Called with mu held.
func (o *own) ofMachine(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	if now := time.Now(); o.machine == nil || now.Sub(o.at) > ownFresh {
		o.at, o.machine = now, make(map[netip.Addr]bool)
		all, _ := o.addresses() // without them loopback is left
		for _, a := range all {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				o.machine[prefix.Addr().Unmap()] = true
			}
		}
	}
	return o.machine[ip]
}
