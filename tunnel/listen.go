package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"culvert/auth"
	"culvert/mux"
)

// localhost names both loopback addresses.
const localhost = "localhost"

// deniedBeyondLoopback is what a client is told that may not listen at an address which
// others can reach. Which rules there are it is not told.
const deniedBeyondLoopback = deniedByPolicy + ": an address beyond localhost takes --gateway-ports at the server, or a listen rule for the identity"

// deniedOwnPort is what a client is told that asks for a port of the server's own.
const deniedOwnPort = deniedByPolicy + ": the server uses this port itself; take another one, or let a listen rule of the identity name it"

// inUseByAnother is what a client is told that wants an address which a living session
// listens at.
const inUseByAnother = "address in use by another session"

// peer is a session at the server and what is known of its client.
type peer struct {
	session
	id       string // of the session, for logs
	identity string
	usage    *usage
	account  *account // nil: nothing is recorded
	log      events

	attached func() bool                     // has a carrier
	probe    func(ctx context.Context) error // nil if anything is heard from the client before ctx ends

	// Guarded by listeners.mu.
	gone     bool // holds nothing any more
	forwards int  // held and asked for
}

// listeners are the server's ends of all remote forwards. A listener belongs to
// one session and is closed with it. Another session of the same identity takes
// it over, connections in its backlog included, when the holder has no carrier,
// as that of a client that was killed, or when nothing is heard from the holder for
// as long as it takes to declare its carrier dead.
type listeners struct {
	guard    *auth.Guard
	lookup   lookup
	settings Settings
	log      events

	accepting sync.WaitGroup // accept loops
	conns     sync.WaitGroup // accepted connections

	mu      sync.Mutex
	closed  bool
	open    map[*remoteListener]struct{}
	changed chan struct{} // closed and replaced by notify
}

// remoteListener is the server's end of one remote forward: one bound address, or the two
// of localhost.
type remoteListener struct {
	bound []bound // the listener, or two for localhost
	addr  netip.AddrPort
	stop  context.CancelFunc
	done  chan struct{} // closed when the addresses are free again

	// Guarded by listeners.mu.
	lease   *lease              // of its owner; nil once released
	streams map[stream]struct{} // of connections that came in here
	uses    int                 // those, opens under way and the accept loop: what needs the grant
}

// lease is a session's use of a listener. It is a mux.Listener.
type lease struct {
	listeners *listeners
	listener  *remoteListener
	owner     *peer
	forward   uint32 // the owner's number for it
	since     time.Time
	ended     chan *mux.Error
}

func (ls *listeners) newLease(l *remoteListener, p *peer, forward uint32) *lease {
	return &lease{listeners: ls, listener: l, owner: p, forward: forward, since: time.Now(), ended: make(chan *mux.Error, 1)}
}

func (e *lease) Addr() string             { return e.listener.addr.String() }
func (e *lease) Ended() <-chan *mux.Error { return e.ended }

// Close closes the listener, unless the lease has ended. When it returns the address is free.
func (e *lease) Close() {
	e.listeners.mu.Lock()
	held := e.listener.lease == e
	if held {
		e.listeners.releaseLocked(e.listener, endedClosed)
	}
	e.listeners.mu.Unlock()
	if held {
		<-e.listener.done
	}
}

// end has the end of the lease recorded, and told to its owner if that has a reason.
// Called with listeners.mu held.
func (e *lease) end(ended string) {
	e.owner.forwards--
	e.owner.account.event(auditListenEnded, slog.String(keyListener, e.Addr()), since(e.since), slog.String(keyEnded, ended))
	if why := leaseEnds[ended]; why != nil {
		e.ended <- why
	}
}

// leaseEnds are the reasons that an owner is told which has not ended the lease itself.
var leaseEnds = map[string]*mux.Error{
	endedTaken:   {Code: mux.Refused, Reason: "taken over by another session of this identity"},
	endedRevoked: {Code: mux.Denied, Reason: deniedByPolicy},
}

func newListeners(guard *auth.Guard, lookup lookup, s Settings) *listeners {
	return &listeners{
		guard: guard, lookup: lookup, settings: s, log: newEvents(s),
		open: make(map[*remoteListener]struct{}), changed: make(chan struct{}),
	}
}

// notify wakes connections that wait for the session of their listener: a
// carrier was attached somewhere, or a listener has a new owner.
func (ls *listeners) notify() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.notifyLocked()
}

func (ls *listeners) notifyLocked() {
	close(ls.changed)
	ls.changed = make(chan struct{})
}

// listen binds "host:port" for p, which calls it forward. Its errors wrap an *mux.Error.
func (ls *listeners) listen(ctx context.Context, p *peer, forward uint32, bind string) (l mux.Listener, err error) {
	defer func() {
		if err != nil {
			p.listenRefused(bind, err)
		}
	}()
	p.usage.turn()
	if err := p.usage.listen(); err != nil {
		return nil, err
	}
	if err := ls.enlist(p); err != nil {
		return nil, err
	}
	e, err := ls.acquire(ctx, p, forward, bind)
	if err != nil {
		ls.mu.Lock()
		p.forwards--
		ls.mu.Unlock()
		return nil, err
	}
	p.log.Info("forward listening", keyForward, forward, keyAddress, e.Addr())
	p.account.event(auditListenOpened, auditText(keyTarget, bind),
		slog.String(keyListener, e.Addr()), slog.String(keyRule, e.listener.rule()))
	return e, nil
}

// enlist counts one more forward of p.
func (ls *listeners) enlist(p *peer) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p.forwards >= ls.settings.MaxForwards {
		return &mux.Error{Code: mux.Limit, Reason: "too many forwards in this session"}
	}
	p.forwards++
	return nil
}

func (ls *listeners) acquire(ctx context.Context, p *peer, forward uint32, bind string) (*lease, error) {
	host, want, err := bindAddr(ctx, bind, ls.lookup)
	if err != nil {
		return nil, &mux.Error{Code: mux.Unresolvable, Reason: reasonOf(err, "malformed bind address")}
	}
	grant, err := ls.guard.Listen(p.identity, auth.TCP, host, want)
	if err != nil {
		p.log.Debug("listen denied", keyAddress, bind, keyError, err)
		reason := deniedByPolicy
		var denied *auth.DeniedError
		switch {
		case errors.As(err, &denied) && denied.Own:
			reason = deniedOwnPort
		case !want.Addr().IsLoopback():
			reason = deniedBeyondLoopback
		}
		return nil, fmt.Errorf("%w (%w)", &mux.Error{Code: mux.Denied, Reason: reason}, err)
	}
	if want.Port() != 0 {
		e, err := ls.claim(ctx, p, forward, want)
		if e != nil || err != nil {
			grant.Release() // that of the listener goes on: it is the same identity's
			return e, err
		}
	}
	return ls.bind(ctx, p, forward, host, grant)
}

// claim settles who holds an address that is wanted: it returns the lease of the listener
// if p took it over, and nil if nothing of ours stands in the way any more.
func (ls *listeners) claim(ctx context.Context, p *peer, forward uint32, want netip.AddrPort) (*lease, error) {
	for {
		ls.mu.Lock()
		held := ls.conflicting(want)
		var former *lease
		if held != nil {
			former = held.lease
		}
		ls.mu.Unlock()
		switch {
		case held == nil:
			return nil, nil
		case former.owner == p:
			return nil, &mux.Error{Code: mux.Refused, Reason: "address in use by this session"}
		case former.owner.identity != p.identity || ls.alive(ctx, former.owner):
			return nil, &mux.Error{Code: mux.Refused, Reason: inUseByAnother}
		case ctx.Err() != nil:
			return nil, &mux.Error{Code: mux.Cancelled, Reason: "not wanted any more"}
		}
		ls.mu.Lock()
		if held.lease != former {
			ls.mu.Unlock()
			continue // somebody else was faster
		}
		if p.gone || ls.closed {
			ls.mu.Unlock()
			return nil, &mux.Error{Code: mux.Stopping, Reason: "session is ending"}
		}
		p.log.Info("forward taken over", keyForward, forward, keyAddress, held.addr.String(), keyFrom, former.owner.id)
		if held.addr == want {
			former.end(endedTaken)
			held.lease = ls.newLease(held, p, forward)
			ls.notifyLocked()
			ls.mu.Unlock()
			return held.lease, nil
		}
		// It overlaps without being the same: 0.0.0.0 and 127.0.0.1, or [::1] and localhost.
		ls.releaseLocked(held, endedTaken)
		ls.mu.Unlock()
		<-held.done
	}
}

// conflicting is a listener that keeps want from being bound, or nil. Called
// with mu held.
func (ls *listeners) conflicting(want netip.AddrPort) *remoteListener {
	for l := range ls.open {
		if l.addr.Port() != want.Port() {
			continue
		}
		if l.addr.Addr().IsUnspecified() || want.Addr().IsUnspecified() || slices.ContainsFunc(l.bound, func(b bound) bool { return b.addr() == want }) {
			return l
		}
	}
	return nil
}

// alive reports whether holder has a carrier that would not be declared dead.
func (ls *listeners) alive(ctx context.Context, holder *peer) bool {
	if !holder.attached() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, ls.settings.HeartbeatTimeout)
	defer cancel()
	return holder.probe(ctx) == nil
}

// bind opens a new listener for p, which grant allows. It takes the grant.
func (ls *listeners) bind(ctx context.Context, p *peer, forward uint32, host auth.Host, grant *auth.Grant) (*lease, error) {
	opened, err := listenAt(ctx, ls.guard, p.identity, host, grant, p.log)
	if err != nil {
		p.log.Debug("listen failed", keyAddress, grant.Addr().String(), keyError, err)
		return nil, listenVerdict(err)
	}
	addr := opened[0].addr()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &remoteListener{
		bound: opened, addr: addr, stop: stop, done: make(chan struct{}),
		streams: make(map[stream]struct{}), uses: 1,
	}
	e := ls.newLease(l, p, forward)
	l.lease = e
	f := &forwarder{
		target:      "remote forward at " + addr.String(),
		open:        func(ctx context.Context, from net.Addr) (stream, string, error) { return ls.openStream(ctx, l, from) },
		closed:      func(st stream) { ls.streamClosed(l, st) },
		connectWait: ls.settings.ConnectWait, openTimeout: ls.settings.OpenTimeout,
		pending: make(chan struct{}, ls.settings.MaxPending),
		log:     ls.log.with(keyClient, p.identity, keyForward, addr.String()),
		told:    func() bool { return p.usage.admit("target refused", "") },
	}
	ls.mu.Lock()
	if p.gone || ls.closed {
		ls.mu.Unlock()
		stop()
		for _, b := range opened {
			b.close()
		}
		return nil, &mux.Error{Code: mux.Stopping, Reason: "session is ending"}
	}
	ls.open[l] = struct{}{}
	ls.accepting.Go(func() {
		defer close(l.done)
		defer ls.unuse(l)
		f.runAll(running, opened, func(ln *net.TCPListener) net.Listener { return ln }, &ls.conns)
	})
	ls.mu.Unlock()
	for _, b := range opened {
		b.grant.OnRevoke(func(error) { ls.revoke(l) })
	}
	return e, nil
}

// rule is what of the policy allows it.
func (l *remoteListener) rule() string { return l.bound[0].grant.Rule() }

// allowed reports whether the policy still allows it, at each of its addresses.
func (l *remoteListener) allowed() bool {
	return !slices.ContainsFunc(l.bound, func(b bound) bool { return !b.grant.Listens() })
}

// openStream opens a stream to whoever owns l, once that has a carrier, for a
// connection from this address.
func (ls *listeners) openStream(ctx context.Context, l *remoteListener, from net.Addr) (st stream, session string, err error) {
	ls.mu.Lock()
	l.uses++
	ls.mu.Unlock()
	defer func() {
		if err != nil {
			ls.unuse(l)
		}
	}()
	for {
		ls.mu.Lock()
		present, changed := l.lease, ls.changed
		ls.mu.Unlock()
		if present == nil {
			return nil, "", &mux.Error{Code: mux.Stopping, Reason: "the forward has ended"}
		}
		if owner := present.owner; owner.attached() {
			e := owner.account.remoteStream(l.addr, from)
			if err := owner.usage.enterTold(e); err != nil {
				return nil, "", err
			}
			st, err := owner.Open(ctx, mux.Header{Kind: mux.KindForward, Target: strconv.FormatUint(uint64(present.forward), 10)})
			if err == nil {
				metered := owner.usage.meter(st, e)
				e.serve(slog.Uint64(keyStream, st.ID()), slog.String(keyRule, l.rule()))
				if err := ls.streamOpened(l, metered); err != nil {
					metered.Close()
					return nil, "", err
				}
				return metered, owner.id, nil
			}
			owner.usage.exit()
			if !lost(err) {
				return nil, "", err
			}
		}
		// Its session ends with a notice, or is taken over with one.
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, "", errNoSession
		}
	}
}

// streamOpened notes a stream of a connection that came in through l, unless l was
// revoked meanwhile, and streamClosed that it has ended.
func (ls *listeners) streamOpened(l *remoteListener, st stream) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !l.allowed() {
		st.Reset(mux.Denied, deniedByPolicy)
		return &mux.Error{Code: mux.Denied, Reason: deniedByPolicy}
	}
	l.streams[st] = struct{}{}
	return nil
}

func (ls *listeners) streamClosed(l *remoteListener, st stream) {
	ls.mu.Lock()
	delete(l.streams, st)
	ls.mu.Unlock()
	ls.unuse(l)
}

// unuse gives the grant of l back with its last user.
func (ls *listeners) unuse(l *remoteListener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l.uses--; l.uses == 0 {
		for _, b := range l.bound {
			b.grant.Release()
		}
	}
}

// revoke closes l, whose owner may not listen there any more, and ends what came in
// through it.
func (ls *listeners) revoke(l *remoteListener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if e := l.lease; e != nil {
		e.owner.log.Warn("forward revoked", keyForward, e.forward, keyAddress, e.Addr())
		ls.releaseLocked(l, endedRevoked)
	}
	for st := range l.streams {
		st.Reset(mux.Denied, deniedByPolicy)
	}
}

// release closes everything that p owns; p gets nothing from then on.
func (ls *listeners) release(p *peer) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.gone = true
	for l := range ls.open {
		if l.lease.owner == p {
			ls.releaseLocked(l, endedClosed)
		}
	}
}

func (ls *listeners) releaseLocked(l *remoteListener, ended string) {
	l.lease.end(ended)
	l.lease = nil
	delete(ls.open, l)
	l.stop()
	ls.notifyLocked()
}

// close closes all listeners and waits for their accept loops. Connections that
// were accepted go on; see conns.
func (ls *listeners) close() {
	ls.mu.Lock()
	ls.closed = true
	for l := range ls.open {
		ls.releaseLocked(l, endedClosed)
	}
	ls.mu.Unlock()
	ls.accepting.Wait()
}

// splitBind takes "host:port" apart; "*" and no host are the unspecified address of
// IPv6, which means both families, and the port may be 0.
func splitBind(bind string) (host auth.Host, port uint16, err error) {
	text, digits, err := net.SplitHostPort(bind)
	if err != nil {
		return auth.Host{}, 0, err
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return auth.Host{}, 0, fmt.Errorf("port %q is not a number up to 65535", digits)
	}
	if text == "" || text == "*" {
		text = "::"
	}
	host, err = auth.ParseHost(text)
	return host, uint16(n), err
}

// bindAddr is the host of "host:port" and the address that is to be bound: of a name
// the first IPv4 address, or else the first.
func bindAddr(ctx context.Context, bind string, lookup lookup) (auth.Host, netip.AddrPort, error) {
	host, port, err := splitBind(bind)
	if err != nil {
		return auth.Host{}, netip.AddrPort{}, err
	}
	if host.String() == localhost { // whatever a resolver says; see listenAt for ::1
		return host, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), nil
	}
	addrs, err := lookup.addresses(ctx, host)
	if err != nil {
		return auth.Host{}, netip.AddrPort{}, err
	}
	best := addrs[0]
	for _, ip := range addrs {
		if ip.Unmap().Is4() {
			best = ip
			break
		}
	}
	return host, netip.AddrPortFrom(best.Unmap(), port), nil
}

// listenVerdict is what the client is told of a failed bind.
func listenVerdict(err error) *mux.Error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, auth.ErrDenied):
		return &mux.Error{Code: mux.Denied, Reason: deniedByPolicy}
	case errors.Is(err, errnoInUse):
		return &mux.Error{Code: mux.Refused, Reason: "address in use by another program"}
	case errors.As(err, &errno):
		if code, ok := errnoCodes[errno]; ok && code == mux.Limit {
			return &mux.Error{Code: code, Reason: errno.Error()}
		}
		return &mux.Error{Code: mux.Denied, Reason: errno.Error()}
	default:
		return &mux.Error{Code: mux.Internal, Reason: "listen failed"}
	}
}

// reasonOf is the public reason in err, or fallback.
func reasonOf(err error, fallback string) string {
	var t *TargetError
	if errors.As(err, &t) {
		return t.Reason
	}
	return fallback
}
