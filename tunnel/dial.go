package tunnel

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"culvert/mux"
)

// Policy is asked for every dial and every listen that a client causes at the
// server; auth.Policy describes it. Its methods answer at once.
type Policy interface {
	DialAddr(identity string, addr netip.AddrPort) error
	Listen(identity string, addr netip.AddrPort) error
}

// maxAddresses bounds how many addresses of one name are tried.
const maxAddresses = 8

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}

// dialer reaches targets. It resolves a name once, asks allow about every
// address and dials those that it was asked about.
type dialer struct {
	timeout time.Duration                                                // for everything
	allow   func(netip.AddrPort) error                                   // nil: everything
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error) // nil: the system's resolver
}

// dial connects to "host:port". It gives up as soon as ctx ends. Every error is
// a *TargetError.
func (d *dialer) dial(ctx context.Context, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	addrs, err := d.resolve(ctx, target)
	if err != nil {
		return nil, err
	}
	var failed *TargetError
	for i, addr := range addrs {
		conn, err := d.dialAddr(ctx, addr, len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		// The most telling failure is reported: refused by somebody says more
		// than an address family without a route.
		if f := classify(err); failed == nil || telling(f.Code) > telling(failed.Code) {
			failed = f
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// resolve is the addresses of target that may be dialled, at least one.
func (d *dialer) resolve(ctx context.Context, target string) ([]netip.AddrPort, error) {
	host, port, err := splitTarget(target)
	if err != nil {
		return nil, &TargetError{Code: mux.Unresolvable, Reason: "malformed target", Err: err}
	}
	var found []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		found = []netip.Addr{ip}
	} else {
		lookup := d.lookup
		if lookup == nil {
			lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			}
		}
		found, err = lookup(ctx, host)
		if err != nil {
			return nil, unresolvable(err)
		}
	}
	var addrs []netip.AddrPort
	var denied error
	for _, ip := range found {
		addr := netip.AddrPortFrom(ip.Unmap(), port)
		if slices.Contains(addrs, addr) {
			continue
		}
		if d.allow != nil {
			if err := d.allow(addr); err != nil {
				denied = err
				continue
			}
		}
		addrs = append(addrs, addr)
	}
	switch {
	case len(addrs) > 0:
		return addrs[:min(len(addrs), maxAddresses)], nil
	case denied != nil:
		return nil, &TargetError{Code: mux.Denied, Reason: "denied by policy", Err: denied}
	default:
		return nil, &TargetError{Code: mux.Unresolvable, Reason: "no address"}
	}
}

// dialAddr dials one checked address within its share of what is left of ctx.
func (d *dialer) dialAddr(ctx context.Context, addr netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := time.Until(deadline) / time.Duration(left)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(share, min(2*time.Second, d.timeout/2)))
		defer cancel()
	}
	nd := net.Dialer{KeepAliveConfig: keepAlive}
	if d.allow != nil {
		// The last gate: whatever happened above, nothing else is connected to.
		nd.Control = func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return &TargetError{Code: mux.Denied, Reason: "denied by policy", Err: err}
			}
			ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
			if err := d.allow(ap); err != nil {
				return &TargetError{Code: mux.Denied, Reason: "denied by policy", Err: err}
			}
			return nil
		}
	}
	return nd.DialContext(ctx, "tcp", addr.String())
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
// stream does.
func serveTarget(d *dialer, st stream, session, target string, log events) (relaying func()) {
	conn, err := d.dial(st.Context(), target)
	if err != nil {
		if st.Context().Err() != nil {
			st.Close()
			log.Debug("stream ended before its target answered", keySession, session, keyStream, st.ID(), keyTarget, target)
			return nil
		}
		code, why := verdict(err, mux.Internal)
		st.Refuse(code, why)
		log.Warn("target refused", keySession, session, keyStream, st.ID(), keyTarget, target, keyCode, code, keyReason, err)
		return nil
	}
	if err := st.Accept(); err != nil {
		st.Close()
		abort(conn)
		return nil
	}
	return func() {
		r := &relay{conn: conn, stream: st}
		_ = r.run(st.Context()) // only an opener's relay has an error to tell
		log.streamClosed(r, session, target)
	}
}
