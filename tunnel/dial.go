package tunnel

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier/eyeballs"
	"culvert/tunnel/gate"
)

// deniedByPolicy is all that a client is told; the log says which rule it was.
const deniedByPolicy = "denied by policy"

// maxAddresses bounds how many addresses of one name are tried.
const maxAddresses = 8

// dialer reaches targets for an identity. It resolves a name once, asks the guard
// about every address and dials with what it is granted, one address after the other, each
// a little later than the one before.
type dialer struct {
	guard    *auth.Guard
	identity string
	timeout  time.Duration // for everything
	lookup   lookup
	memory   *eyeballs.Memory // of the addresses that worked; may be nil
	usage    *usage           // of the identity; may be nil
}

// lookup finds the addresses of a name; nil: the system's resolver does.
type lookup func(ctx context.Context, name string) ([]netip.Addr, error)

// addresses are those of host, at least one: its own, if it is one. Errors are
// *TargetError.
func (l lookup) addresses(ctx context.Context, host auth.Host) ([]netip.Addr, error) {
	if ip := host.Addr(); ip.IsValid() {
		return []netip.Addr{ip}, nil
	}
	if l == nil {
		l = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	found, err := l(ctx, host.String())
	if err != nil {
		return nil, unresolvable(err)
	}
	if len(found) == 0 {
		return nil, &TargetError{Code: mux.Unresolvable, Reason: "no address"}
	}
	return found, nil
}

// dial connects to "host:port". It gives up as soon as ctx ends. The grant is the
// caller's to release. Every error is a *TargetError.
func (d *dialer) dial(ctx context.Context, target string) (net.Conn, *auth.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	grants, err := d.resolve(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	var reached *auth.Grant
	defer func() {
		for _, g := range grants {
			if g != reached {
				g.Release()
			}
		}
	}()
	conn, winner, errs := eyeballs.Race(ctx, len(grants), func(ctx context.Context, i int) (net.Conn, error) {
		return gate.Dial(ctx, grants[i])
	})
	if conn != nil {
		reached = grants[winner]
		d.memory.Worked(target, reached.Addr().Addr())
		return conn, reached, nil
	}
	// The most telling failure is reported: refused by somebody says more than an
	// address family without a route.
	var failed *TargetError
	for _, err := range errs {
		if f := classify(err); failed == nil || telling(f.Code) > telling(failed.Code) {
			failed = f
		}
	}
	return nil, nil, failed
}

// resolve is leave to dial the addresses of target, at least one of them.
func (d *dialer) resolve(ctx context.Context, target string) ([]*auth.Grant, error) {
	host, addrs, err := d.lookup.targets(ctx, target)
	if err != nil {
		return nil, err
	}
	port := addrs[0].Port()
	var ips []netip.Addr
	for _, addr := range addrs {
		ips = append(ips, addr.Addr())
	}
	var grants []*auth.Grant
	var denied error
	for _, ip := range eyeballs.Order(ips, d.memory.Last(target)) {
		addr := netip.AddrPortFrom(ip, port)
		if len(grants) == maxAddresses {
			break
		}
		grant, err := d.guard.Dial(d.identity, auth.TCP, host, addr)
		if err != nil {
			denied = err
			continue
		}
		grants = append(grants, grant)
	}
	if len(grants) == 0 {
		return nil, &TargetError{Code: mux.Denied, Reason: deniedByPolicy, Err: denied}
	}
	return grants, nil
}

// targets are the addresses that "host:port" means, at least one, each once. Errors
// are *TargetError.
func (l lookup) targets(ctx context.Context, target string) (host auth.Host, addrs []netip.AddrPort, err error) {
	host, port, err := splitTarget(target)
	if err != nil {
		return host, nil, &TargetError{Code: mux.Unresolvable, Reason: "malformed target", Err: err}
	}
	found, err := l.addresses(ctx, host)
	if err != nil {
		return host, nil, err
	}
	for _, ip := range found {
		if addr := netip.AddrPortFrom(ip.Unmap(), port); !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return host, addrs, nil
}

func unresolvable(err error) *TargetError {
	reason := "lookup failed"
	var dns *net.DNSError
	if errors.As(err, &dns) {
		switch {
		case dns.IsNotFound:
			reason = "no such host"
		case dns.IsTimeout:
			reason = "lookup timed out"
		}
	}
	return &TargetError{Code: mux.Unresolvable, Reason: reason, Err: err}
}

// classify turns the error of a connect into what the opener is told.
func classify(err error) *TargetError {
	var t *TargetError
	if errors.As(err, &t) {
		return t
	}
	t = &TargetError{Code: mux.Internal, Reason: "dial failed", Err: err}
	var errno syscall.Errno
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, auth.ErrDenied): // the policy changed meanwhile
		t.Code, t.Reason = mux.Denied, deniedByPolicy
	case errors.As(err, &errno) && errnoCodes[errno] != mux.OK:
		t.Code, t.Reason = errnoCodes[errno], errno.Error()
	case errors.Is(err, context.Canceled):
		t.Code, t.Reason = mux.Cancelled, "cancelled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		t.Code, t.Reason = mux.TimedOut, "connection timed out"
	case errors.Is(err, fs.ErrPermission):
		t.Code, t.Reason = mux.Unreachable, "not permitted by the system"
	}
	return t
}

// telling ranks failures by how much they say about the target.
func telling(c mux.Code) int {
	switch c {
	case mux.Refused:
		return 3
	case mux.TimedOut:
		return 2
	case mux.Unreachable:
		return 1
	default:
		return 0
	}
}

// serveTarget dials target for an accepted stream and returns what relays between
// them, nil if it could not. It answers the open itself, and ends early when the
// stream does. e is told what becomes of it.
func serveTarget(d *dialer, st stream, session, target string, log events, e *entry) (relaying func()) {
	conn, grant, err := d.dial(st.Context(), target)
	if err != nil {
		told := d.usage.targetRefused(e, err)
		if st.Context().Err() != nil {
			st.Close()
			log.Debug("stream ended before its target answered", keySession, session, keyStream, st.ID(), keyTarget, target)
			return nil
		}
		code, why := verdict(err, mux.Internal)
		st.Refuse(code, why)
		if told {
			log.Warn("target refused", keySession, session, keyStream, st.ID(), keyTarget, target, keyCode, code, keyReason, err)
		}
		return nil
	}
	// From here on a stream whose grant is revoked ends, also if that was a moment ago.
	grant.OnRevoke(func(error) { st.Reset(mux.Denied, deniedByPolicy) })
	if err := st.Accept(); err != nil {
		d.usage.targetRefused(e, err)
		grant.Release()
		st.Close()
		abort(conn)
		return nil
	}
	e.serve(slog.String(keyAddress, grant.Addr().String()), slog.String(keyRule, grant.Rule()))
	return func() {
		defer grant.Release()
		r := &relay{conn: conn, stream: st}
		log.streamOpened(r, session, target)
		_ = r.run(st.Context()) // only an opener's relay has an error to tell
		log.streamClosed(r, session, target)
	}
}
