package tunnel

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// ownFresh is for how long the machine's addresses are believed.
const ownFresh = time.Second

// own knows a server's own listeners, which no stream is to lead to.
type own struct {
	addresses func() ([]net.Addr, error) // of the machine

	mu        sync.Mutex
	listeners []netip.AddrPort
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

// is reports whether a connection to addr, which has no zone, is one to a listener
// of the server. Addresses that others translate to the machine's, as a provider
// does, are not known.
func (o *own) is(addr netip.AddrPort) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
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
