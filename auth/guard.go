package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Guard is the one who is asked: who is this, may it dial there, may it listen
// there. What it answers is a Login or a Grant, which nobody else can make, and
// without which nothing is dialled or listened at. It keeps what it has granted in
// mind, and takes it back when another directory is put in force that does not
// grant it. All methods may be called concurrently, and none but Authenticate blocks
// for long.
type Guard struct {
	using sync.Mutex // held by Use

	failures  *throttle
	passwords *verifier

	mu        sync.Mutex // guards the rest
	directory *Directory
	own       []func(op string, addr netip.AddrPort) bool
	changed   []func()
	grants    map[*Grant]struct{} // the good ones
	watches   map[*watch]struct{}
}

// NewGuard returns a guard with d in force.
func NewGuard(d *Directory) *Guard {
	return &Guard{
		failures: newThrottle(), passwords: newVerifier(),
		directory: d, grants: make(map[*Grant]struct{}), watches: make(map[*watch]struct{}),
	}
}

// Protect denies what own reports as the server's own, unless a rule names it: to dial
// an address (op is OpDial), or to listen at one (OpListen). own must not block. It may
// not be taken back.
func (g *Guard) Protect(own func(op string, addr netip.AddrPort) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own = append(slices.Clip(g.own), own)
}

// Authenticate says who a client is. Its error says why it is nobody, for the
// server's log and not for the client.
//
// An address that fails often gets its errors late: after ten, which are forgotten at
// one in six seconds, each takes a second (not if p is AtOnce), and a password that was
// not seen to be good before is not looked at (ErrThrottled). What is good is let in at
// once all the same, since many may share an address. Too many passwords at a time are
// ErrBusy. It waits where an issuer's keys have to be fetched; ctx ends any wait with
// its error.
func (g *Guard) Authenticate(ctx context.Context, p Presented) (*Login, error) {
	login, err := g.authenticate(ctx, p)
	if err == nil || errors.Is(err, ErrNoCredential) { // which is no attempt
		return login, err
	}
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrUnavailable) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) { // nobody has looked
		return nil, err
	}
	if !errors.Is(err, ErrThrottled) {
		g.failures.add(p.Remote)
	}
	if p.AtOnce {
		return nil, err
	}
	if wait := g.failures.hold(ctx, p.Remote); wait != nil {
		err = fmt.Errorf("%w: %w", wait, err)
	}
	return nil, err
}

// authenticate tries what is cheap first.
func (g *Guard) authenticate(ctx context.Context, p Presented) (*Login, error) {
	d := g.current()
	login, err := d.login(ctx, p)
	if !errors.Is(err, errPassword) {
		return login, err
	}
	attempt := g.passwords.attempt(d, p.User, p.Password)
	if login := attempt.known(); login != nil {
		return login, nil
	}
	if g.failures.exhausted(p.Remote) {
		return nil, ErrThrottled
	}
	return attempt.check(ctx, SourceOf(p.Remote))
}

// TakesPasswords reports whether anybody could log in with one.
func (g *Guard) TakesPasswords() bool { return len(g.current().costs) > 0 }

// OnUse has f called after each Use, before that returns: to end what belongs to
// identities that are no more ([Guard.Knows]), or to take new limits. It may not be
// taken back.
func (g *Guard) OnUse(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changed = append(slices.Clip(g.changed), f)
}

// Use puts d in force. Whatever was granted and d does not grant is revoked, and
// logins that d does not know end, before Use returns. What is asked meanwhile is
// answered, by d.
func (g *Guard) Use(d *Directory) {
	g.using.Lock()
	defer g.using.Unlock()

	g.mu.Lock()
	g.directory = d
	grants := slices.Collect(maps.Keys(g.grants))
	watches := slices.Collect(maps.Keys(g.watches))
	changed := g.changed
	g.mu.Unlock()

	for _, grant := range grants {
		if err := g.judge(d, grant); err != nil && g.forget(grant) {
			grant.revoke(err)
		}
	}
	for _, w := range watches {
		if !w.login.valid(d) && g.unwatch(w) {
			w.end(ErrRevoked)
		}
	}
	for _, f := range changed {
		f()
	}
}

func (g *Guard) current() *Directory {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.directory
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
	if !l.Until.IsZero() {
		w.timer = time.AfterFunc(time.Until(l.Until), func() {
			if g.unwatch(w) {
				end(ErrExpired)
			}
		})
	}
	return func() {
		if w.timer != nil {
			w.timer.Stop()
		}
		g.unwatch(w)
	}
}

// unwatch ends a watch and reports whether it was there until now.
func (g *Guard) unwatch(w *watch) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, held := g.watches[w]
	delete(g.watches, w)
	return held
}

// Dial asks whether identity may dial addr, to which host, that the client asked
// for, was resolved. A refusal is a *DeniedError.
func (g *Guard) Dial(identity string, network Network, host Host, addr netip.AddrPort) (*Grant, error) {
	return g.grant(&Grant{guard: g, identity: identity, network: network, name: host.name, addr: plain(addr)})
}

// Listen asks whether identity may listen at addr, to which host, that the client
// asked for, was resolved. The unspecified address of IPv4 means every IPv4 address
// of the machine, that of IPv6 every address of both families; port 0 any free one.
// A refusal is a *DeniedError.
func (g *Guard) Listen(identity string, network Network, host Host, addr netip.AddrPort) (*Grant, error) {
	return g.grant(&Grant{
		guard: g, identity: identity, network: network, name: host.name, addr: plain(addr),
		listen: true, chosen: addr.Port() == 0,
	})
}

// grant makes a grant good if the directory in force allows it.
func (g *Guard) grant(grant *Grant) (*Grant, error) {
	for {
		d := g.current()
		if err := g.judge(d, grant); err != nil {
			return nil, err
		}
		if g.hold(d, grant) {
			return grant, nil
		}
	}
}

// hold keeps a grant in mind that d allows. It reports false if another directory
// has come into force, which must be asked instead.
func (g *Guard) hold(d *Directory, grant *Grant) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.directory != d {
		return false
	}
	g.grants[grant] = struct{}{}
	return true
}

func (g *Guard) holds(grant *Grant) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, held := g.grants[grant]
	return held
}

// forget ends a grant and reports whether it was good until now.
func (g *Guard) forget(grant *Grant) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, held := g.grants[grant]
	delete(g.grants, grant)
	return held
}

// bound is Grant.Bound. Until it has the answer the grant is not good.
func (g *Guard) bound(grant *Grant, addr netip.AddrPort) error {
	asked := grant.Addr()
	if !g.forget(grant) || asked.Port() != addr.Port() && !grant.chosen {
		return &DeniedError{Identity: grant.identity, Op: grant.op(), Addr: plain(addr), Rule: "no leave to listen there"}
	}
	grant.mu.Lock()
	grant.addr = netip.AddrPortFrom(asked.Addr(), addr.Port())
	grant.mu.Unlock()
	_, err := g.grant(grant)
	return err
}

// judge asks d about a grant.
func (g *Guard) judge(d *Directory, grant *Grant) error {
	addr := grant.Addr()
	q := g.question(grant.op(), grant.network, grant.name, addr)
	q.chosen = grant.chosen
	v := d.judge(grant.identity, q)
	if !v.Allowed {
		return &DeniedError{Identity: grant.identity, Op: q.op, Addr: addr, Rule: v.Why, Own: q.own && v.Rule < 0}
	}
	grant.mu.Lock()
	grant.rule = v.Why
	grant.mu.Unlock()
	return nil
}

// question is what a policy is asked by this guard.
func (g *Guard) question(op string, network Network, name string, addr netip.AddrPort) question {
	q := newQuestion(op, network, name, addr)
	g.mu.Lock()
	own := g.own
	g.mu.Unlock()
	q.own = slices.ContainsFunc(own, func(is func(string, netip.AddrPort) bool) bool {
		return q.leads(func(ip netip.Addr) bool { return is(op, netip.AddrPortFrom(ip, q.port)) })
	})
	return q
}

// Explain says what Dial or Listen (op is OpDial or OpListen) would answer, and by
// which rule. Nothing is granted.
func (g *Guard) Explain(op, identity string, network Network, host Host, addr netip.AddrPort) Verdict {
	q := g.question(op, network, host.name, plain(addr))
	q.chosen = op == OpListen && addr.Port() == 0
	return g.current().judge(identity, q)
}

// plain is addr in its one spelling.
func plain(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}
