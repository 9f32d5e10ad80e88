package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
	// Own reports whether an address is one of the server's own listeners, which
	// are denied unless a rule names them; nil: none. It is set before the guard
	// is used.
	Own func(netip.AddrPort) bool

	failures  *throttle
	passwords *verifier

	mu        sync.Mutex // guards the rest
	directory *Directory
	grants    map[*Grant]struct{}
	watches   map[*watch]struct{}
}

// NewGuard returns a guard with d in force.
func NewGuard(d *Directory) *Guard {
	return &Guard{
		failures: newThrottle(), passwords: newVerifier(),
		directory: d, grants: make(map[*Grant]struct{}), watches: make(map[*watch]struct{}),
	}
}

// Authenticate says who a client is. Its error says why it is nobody, for the
// server's log and not for the client.
//
// An address that fails often gets its errors late: after ten, which are forgotten at
// one in six seconds, each takes a second, and a password that was not seen to be good
// before is not looked at (ErrThrottled). What is good is let in at once all the same,
// since many may share an address. Too many passwords at a time are ErrBusy. ctx ends
// any wait with its error.
func (g *Guard) Authenticate(ctx context.Context, p Presented) (*Login, error) {
	login, err := g.authenticate(ctx, p)
	if err == nil || errors.Is(err, ErrNoCredential) { // which is no attempt
		return login, err
	}
	if errors.Is(err, ErrBusy) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) { // nobody has looked
		return nil, err
	}
	if !errors.Is(err, ErrThrottled) {
		g.failures.add(p.Remote)
	}
	if wait := g.failures.hold(ctx, p.Remote); wait != nil {
		err = fmt.Errorf("%w: %w", wait, err)
	}
	return nil, err
}

// authenticate tries what is cheap first.
func (g *Guard) authenticate(ctx context.Context, p Presented) (*Login, error) {
	d := g.current()
	login, err := d.login(p)
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
	return attempt.check(ctx, g.failures.key(p.Remote))
}

// TakesPasswords reports whether anybody could log in with one.
func (g *Guard) TakesPasswords() bool { return len(g.current().costs) > 0 }

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
	g.mu.Unlock()
	for _, end := range ended {
		end()
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
