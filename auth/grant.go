package auth

import (
	"net/netip"
	"sync"
)

// Grant is leave to dial one address or to listen at one. Only a Guard makes a good
// one: any other, a copy of a good one too, is leave for nothing. Its user releases
// it when the connection or the listener has ended.
type Grant struct {
	// Set by the guard.
	guard    *Guard
	identity string
	name     string // that the client asked for, "" if it was an address
	network  Network
	listen   bool
	chosen   bool // the port, by the system

	mu      sync.Mutex // guards the rest
	addr    netip.AddrPort
	rule    string
	revoked error
	tell    func(error)
}

// Dials reports whether g is leave to dial.
func (g *Grant) Dials() bool { return g != nil && !g.listen && g.good() }

// Listens reports whether g is leave to listen.
func (g *Grant) Listens() bool { return g != nil && g.listen && g.good() }

func (g *Grant) good() bool { return g.guard != nil && g.guard.holds(g) }

// Network is the protocol to use.
func (g *Grant) Network() Network { return g.network }

// Addr is the address that was asked about, with the port of Bound. An IPv4 address
// is never spelt as an IPv6 one.
func (g *Grant) Addr() netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addr
}

// Rule is the rule that allows it, as it stands in the policy.
func (g *Grant) Rule() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rule
}

// Bound tells where a listener listens, which is leave for that address only, and
// asks again if the port was left to the system. It comes before the first accept.
// A refusal is a *DeniedError, and the end of g.
func (g *Grant) Bound(addr netip.AddrPort) error { return g.guard.bound(g, addr) }

// OnRevoke has f called, once and on some goroutine, when the policy does not allow
// this any more, perhaps before OnRevoke returns: there is no moment at which g
// could be revoked unnoticed. f must not block. The last f that is given counts.
func (g *Grant) OnRevoke(f func(error)) {
	g.mu.Lock()
	g.tell = f
	revoked := g.revoked
	g.mu.Unlock()
	if revoked != nil {
		f(revoked)
	}
}

func (g *Grant) revoke(err error) {
	g.mu.Lock()
	g.revoked = err
	tell := g.tell
	g.mu.Unlock()
	if tell != nil {
		tell(err)
	}
}

// Release gives g back. It may be called again.
func (g *Grant) Release() { g.guard.forget(g) }

// op is what g is leave for.
func (g *Grant) op() string {
	if g.listen {
		return OpListen
	}
	return OpDial
}
