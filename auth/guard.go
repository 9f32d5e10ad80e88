package auth

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Guard is the one who is asked: who is this, may it dial there, may it listen
// there. What it answers is a Login or a Grant, which nobody else can make, and
// without which nothing is dialled or listened at. It keeps what it has granted in
// mind, and takes it back when another directory is put in force that does not
// grant it. All methods may be called concurrently and none blocks for long.
type Guard struct {
	// Own reports whether an address is one of the server's own listeners, which
	// are denied unless a rule names them; nil: none. It is set before the guard
	// is used.
	Own func(netip.AddrPort) bool

	mu        sync.Mutex // guards the rest
	directory *Directory
	grants    map[*Grant]struct{}
	watches   map[*watch]struct{}
	onUse     []func()
}

// NewGuard returns a guard with d in force.
func NewGuard(d *Directory) *Guard {
	return &Guard{directory: d, grants: make(map[*Grant]struct{}), watches: make(map[*watch]struct{})}
}

// Authenticate says who a client is. Its error says why it is nobody, for the
// server's log and not for the client.
func (g *Guard) Authenticate(_ context.Context, p Presented) (*Login, error) {
	return g.current().login(p)
}

func (g *Guard) current() *Directory {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.directory
}

// Use puts d in force. Whatever was granted and d does not grant is revoked, and
// logins that d does not know end, before Use returns.
func (g *Guard) Use(d *Directory) {
	g.mu.Lock()
	g.directory = d
	var ended []func()
	for grant := range g.grants {
		if err := g.judge(grant); err != nil {
			delete(g.grants, grant)
			ended = append(ended, func() { grant.end(err) })
		}
	}
	for w := range g.watches {
		if !w.login.valid(d) {
			delete(g.watches, w)
			ended = append(ended, func() { w.end(ErrRevoked) })
		}
	}
	onUse := g.onUse
	g.mu.Unlock()
	for _, end := range ended {
		end()
	}
	for _, f := range onUse {
		f()
	}
}

// Knows reports whether an identity with this name may still connect.
func (g *Guard) Knows(identity string) bool { return g.current().lookup(identity) != nil }

// watch is a login with whoever wants to know of its end.
type watch struct {
	login *Login
	end   func(error)
	timer *time.Timer
}

// Watch calls end, once and on some goroutine, when the login's credential expires
// (ErrExpired) or is taken away (ErrRevoked), perhaps before Watch returns. stop
// ends the watch.
func (g *Guard) Watch(l *Login, end func(error)) (stop func()) {
	w := &watch{login: l, end: end}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !l.valid(g.directory) {
		go end(ErrRevoked)
		return func() {}
	}
	g.watches[w] = struct{}{}
	forget := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		_, ok := g.watches[w]
		delete(g.watches, w)
		return ok
	}
	if !l.Until.IsZero() {
		w.timer = time.AfterFunc(time.Until(l.Until), func() {
			if forget() {
				end(ErrExpired)
			}
		})
	}
	return func() {
		if w.timer != nil {
			w.timer.Stop()
		}
		forget()
	}
}

// Dial asks whether identity may dial addr, which host, as the client spelt it, was
// resolved to; host may be an address itself. A refusal is a *DeniedError.
func (g *Guard) Dial(identity, host string, addr netip.AddrPort) (*Grant, error) {
	return g.grant(&Grant{guard: g, identity: identity, op: opDial, host: host, addr: plain(addr)})
}

// Listen asks whether identity may listen at addr, which host, as the client spelt
// it, was resolved to. The unspecified address means every address of the machine,
// port 0 any free one. A refusal is a *DeniedError.
func (g *Guard) Listen(identity, host string, addr netip.AddrPort) (*Grant, error) {
	return g.grant(&Grant{guard: g, identity: identity, op: opListen, host: host, addr: plain(addr)})
}

func (g *Guard) grant(grant *Grant) (*Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.judge(grant); err != nil {
		return nil, err
	}
	g.grants[grant] = struct{}{}
	return grant, nil
}

// judge asks the directory in force about a grant. Called with mu held.
func (g *Guard) judge(grant *Grant) error {
	id := g.directory.lookup(grant.identity)
	if id == nil {
		return &DeniedError{Identity: grant.identity, Op: grant.op, Addr: grant.addr, Rule: "no such identity"}
	}
	own := g.Own != nil && g.Own(grant.addr)
	v := id.Policy.judge(question{op: grant.op, host: grant.host, addr: grant.addr, own: own})
	grant.rule = v.rule
	if !v.allowed {
		return &DeniedError{Identity: grant.identity, Op: grant.op, Addr: grant.addr, Rule: v.rule}
	}
	return nil
}

// plain is addr in its one spelling.
func plain(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}
