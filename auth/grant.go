package auth

import (
	"net/netip"
	"sync"
)

const (
	opDial   = "dial"
	opListen = "listen"
)

// Grant is leave to dial one address or to listen at one. Only a Guard makes a good
// one. Its user releases it when the connection or the listener has ended.
type Grant struct {
	guard    *Guard
	identity string
	op       string
	host     string
	addr     netip.AddrPort
	rule     string // guarded by guard.mu

	mu      sync.Mutex // guards the rest
	revoked error
	tell    func(error)
}

// Dials reports whether g is leave to dial.
func (g *Grant) Dials() bool { return g.good(opDial) }

// Listens reports whether g is leave to listen.
func (g *Grant) Listens() bool { return g.good(opListen) }

func (g *Grant) good(op string) bool {
	if g == nil || g.guard == nil || g.op != op {
		return false
	}
	g.guard.mu.Lock()
	defer g.guard.mu.Unlock()
	_, held := g.guard.grants[g]
	return held
}

// Addr is the address that was asked about: an IPv4 address is never spelt as an
// IPv6 one.
func (g *Grant) Addr() netip.AddrPort { return g.addr }

// Rule is the rule that allows it, as it stands in the policy.
func (g *Grant) Rule() string {
	g.guard.mu.Lock()
	defer g.guard.mu.Unlock()
	return g.rule
}

// OnRevoke has f called, once and on some goroutine, when the policy does not allow
// this any more, perhaps before OnRevoke returns. f must not block. The last f that
// is given counts.
func (g *Grant) OnRevoke(f func(error)) {
	g.mu.Lock()
	g.tell = f
	revoked := g.revoked
	g.mu.Unlock()
	if revoked != nil {
		f(revoked)
	}
}

func (g *Grant) end(err error) {
	g.mu.Lock()
	g.revoked = err
	tell := g.tell
	g.mu.Unlock()
	if tell != nil {
		tell(err)
	}
}

// Release gives g back. It may be called again.
func (g *Grant) Release() {
	g.guard.mu.Lock()
	defer g.guard.mu.Unlock()
	delete(g.guard.grants, g)
}
