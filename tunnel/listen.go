package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/tunnel/gate"
)

// probeTimeout is how long the holder of an address has to show that it is
// still there when another session of its identity wants the address.
const probeTimeout = 2 * time.Second

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
// it over, connections in its backlog included, when the holder has no carrier
// or does not answer a probe: that is how a client that was killed, or whose
// path died, comes back to its port at once.
type listeners struct {
	guard    *auth.Guard
	settings Settings
	log      events

	accepting sync.WaitGroup // accept loops
	conns     sync.WaitGroup // accepted connections

	mu      sync.Mutex
	closed  bool
	open    map[*remoteListener]struct{}
	changed chan struct{} // closed and replaced by notify
}

// remoteListener is one bound address.
type remoteListener struct {
	addr  netip.AddrPort
	grant *auth.Grant
	stop  context.CancelFunc
	done  chan struct{} // closed when the address is free again

	// Guarded by listeners.mu.
	owner   *peer  // nil once released
	forward uint32 // the owner's number for it
	since   time.Time
}

func newListeners(guard *auth.Guard, s Settings) *listeners {
	return &listeners{
		guard: guard, settings: s, log: events{s.Logger},
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

// listen binds "host:port" for p, which calls it forward, and returns the address
// it became and the function that ends it. Its errors wrap an *mux.Error.
func (ls *listeners) listen(ctx context.Context, p *peer, forward uint32, bind string) (addr string, stop func(), err error) {
	defer func() {
		if err != nil {
			p.log.Warn("listen refused", keyAddress, bind, keyReason, err)
			event, attrs := refusal(err, auditListenDenied, auditListenFailed)
			p.account.event(event, append(attrs, auditText(keyTarget, bind))...)
		}
	}()
	if err := ls.enlist(p); err != nil {
		return "", nil, err
	}
	l, err := ls.acquire(ctx, p, forward, bind)
	if err != nil {
		ls.mu.Lock()
		p.forwards--
		ls.mu.Unlock()
		return "", nil, err
	}
	p.log.Info("forward listening", keyForward, forward, keyAddress, l.addr.String())
	p.account.event(auditListenOpened, auditText(keyTarget, bind),
		slog.String(keyListener, l.addr.String()), slog.String(keyRule, l.grant.Rule()))
	return l.addr.String(), func() { ls.unlisten(p, l) }, nil
}

// enlist counts one more forward of p.
func (ls *listeners) enlist(p *peer) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p.forwards >= ls.settings.MaxForwards {
		ls.log.Warn("limit reached", keyLimit, "forwards of a session", keySession, p.id)
		return &mux.Error{Code: mux.Limit, Reason: "too many forwards in this session"}
	}
	p.forwards++
	return nil
}

func (ls *listeners) acquire(ctx context.Context, p *peer, forward uint32, bind string) (*remoteListener, error) {
	want, err := bindAddr(ctx, bind)
	if err != nil {
		return nil, &mux.Error{Code: mux.Unresolvable, Reason: reasonOf(err, "malformed bind address")}
	}
	host, _, _ := net.SplitHostPort(bind)
	grant, err := ls.guard.Listen(p.identity, host, want)
	if err != nil {
		p.log.Debug("listen denied", keyAddress, bind, keyError, err)
		return nil, fmt.Errorf("%w (%w)", &mux.Error{Code: mux.Denied, Reason: "denied by policy"}, err)
	}
	if want.Port() != 0 {
		l, err := ls.claim(ctx, p, forward, want)
		if l != nil || err != nil {
			grant.Release() // that of the listener goes on: it is the same identity's
			return l, err
		}
	}
	l, err := ls.bind(ctx, p, forward, grant)
	if err != nil {
		grant.Release()
	}
	return l, err
}

// claim settles who holds an address that is wanted: it returns the listener
// if p took it over, and nil if nothing of ours stands in the way any more.
func (ls *listeners) claim(ctx context.Context, p *peer, forward uint32, want netip.AddrPort) (*remoteListener, error) {
	for {
		ls.mu.Lock()
		held := ls.conflicting(want)
		var holder *peer
		if held != nil {
			holder = held.owner
		}
		ls.mu.Unlock()
		switch {
		case held == nil:
			return nil, nil
		case holder == p:
			return nil, &mux.Error{Code: mux.Refused, Reason: "address in use by this session"}
		case holder.identity != p.identity || ls.alive(ctx, holder):
			return nil, &mux.Error{Code: mux.Refused, Reason: "address in use by another session"}
		}
		ls.mu.Lock()
		if held.owner != holder {
			ls.mu.Unlock()
			continue // somebody else was faster
		}
		if p.gone || ls.closed {
			ls.mu.Unlock()
			return nil, &mux.Error{Code: mux.Stopping, Reason: "session is ending"}
		}
		p.log.Info("forward taken over", keyForward, forward, keyAddress, held.addr.String(), keyFrom, holder.id)
		if held.addr == want {
			held.endedLocked(endedTaken)
			holder.forwards--
			held.owner, held.forward, held.since = p, forward, time.Now()
			ls.notifyLocked()
			ls.mu.Unlock()
			return held, nil
		}
		// It overlaps without being the same: 0.0.0.0 and 127.0.0.1.
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
		if l.addr == want || l.addr.Addr().IsUnspecified() || want.Addr().IsUnspecified() {
			return l
		}
	}
	return nil
}

func (ls *listeners) alive(ctx context.Context, holder *peer) bool {
	if !holder.attached() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return holder.probe(ctx) == nil
}

// bind opens a new listener for p.
func (ls *listeners) bind(ctx context.Context, p *peer, forward uint32, grant *auth.Grant) (*remoteListener, error) {
	ln, err := gate.Listen(ctx, grant)
	if err != nil {
		p.log.Debug("listen failed", keyAddress, grant.Addr().String(), keyError, err)
		return nil, listenVerdict(err)
	}
	addr, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		ln.Close()
		return nil, &mux.Error{Code: mux.Internal, Reason: "listen failed"}
	}

	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p.gone || ls.closed {
		ln.Close()
		return nil, &mux.Error{Code: mux.Stopping, Reason: "session is ending"}
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &remoteListener{addr: addr, stop: stop, done: make(chan struct{}), grant: grant, owner: p, forward: forward, since: time.Now()}
	ls.open[l] = struct{}{}
	f := &forwarder{
		listener: ln, target: "remote forward at " + addr.String(),
		open:        func(ctx context.Context, from net.Addr) (stream, string, error) { return ls.openStream(ctx, l, from) },
		connectWait: ls.settings.ConnectWait, openTimeout: ls.settings.OpenTimeout,
		pending: make(chan struct{}, ls.settings.MaxPending),
		log:     ls.log.with(keyClient, p.identity, keyForward, addr.String()),
	}
	grant.OnRevoke(func(error) { ls.revoke(l) })
	ls.accepting.Go(func() {
		defer close(l.done)
		defer grant.Release()
		f.run(running, &ls.conns)
	})
	return l, nil
}

// openStream opens a stream to whoever owns l, once that has a carrier, for a
// connection from this address.
func (ls *listeners) openStream(ctx context.Context, l *remoteListener, from net.Addr) (st stream, session string, err error) {
	for {
		ls.mu.Lock()
		owner, forward, changed := l.owner, l.forward, ls.changed
		ls.mu.Unlock()
		if owner == nil {
			return nil, "", &mux.Error{Code: mux.Stopping, Reason: "the forward has ended"}
		}
		if owner.attached() {
			e := owner.account.remoteStream(l.addr, from)
			if err := owner.usage.enter(); err != nil {
				e.refuse(err)
				return nil, "", err
			}
			st, err := owner.Open(ctx, mux.Header{Kind: mux.KindForward, Target: strconv.FormatUint(uint64(forward), 10)})
			if err == nil {
				m := owner.usage.meter(st, e)
				e.serve(slog.Uint64(keyStream, st.ID()), slog.String(keyRule, l.grant.Rule()))
				return m, owner.id, nil
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

// unlisten closes l if p still owns it.
func (ls *listeners) unlisten(p *peer, l *remoteListener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l.owner == p {
		ls.releaseLocked(l, endedClosed)
	}
}

// revoke closes l, whose owner may not listen there any more. It is called without
// mu held, or as soon as it is free.
func (ls *listeners) revoke(l *remoteListener) {
	go func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if l.owner != nil {
			l.owner.log.Warn("forward revoked", keyForward, l.forward, keyAddress, l.addr.String())
			ls.releaseLocked(l, endedRevoked)
		}
	}()
}

// release closes everything that p owns; p gets nothing from then on.
func (ls *listeners) release(p *peer) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.gone = true
	for l := range ls.open {
		if l.owner == p {
			ls.releaseLocked(l, endedClosed)
		}
	}
}

func (ls *listeners) releaseLocked(l *remoteListener, ended string) {
	l.endedLocked(ended)
	delete(ls.open, l)
	l.owner.forwards--
	l.owner = nil
	l.stop()
	ls.notifyLocked()
}

// endedLocked has the end of a listener recorded, or of its use by its owner.
func (l *remoteListener) endedLocked(ended string) {
	l.owner.account.event(auditListenEnded, slog.String(keyListener, l.addr.String()), since(l.since), slog.String(keyEnded, ended))
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

// bindAddr is the address that "host:port" means: "*" and "" all addresses, a
// name its first IPv4 address, or else its first.
func bindAddr(ctx context.Context, bind string) (netip.AddrPort, error) {
	host, digits, err := net.SplitHostPort(bind)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q is not a number up to 65535", digits)
	}
	switch host {
	case "", "*":
		return netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)), nil
	case "localhost":
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, unresolvable(err)
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, &TargetError{Code: mux.Unresolvable, Reason: "no address"}
	}
	best := addrs[0]
	for _, ip := range addrs {
		if ip.Unmap().Is4() {
			best = ip
			break
		}
	}
	return netip.AddrPortFrom(best.Unmap(), uint16(port)), nil
}

// listenVerdict is what the client is told of a failed bind.
func listenVerdict(err error) *mux.Error {
	var errno syscall.Errno
	switch {
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
