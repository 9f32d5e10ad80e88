package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"culvert/auth"
	"culvert/mux/carrier/reserve"
)

// KeepAlive is what connections of streams are probed with.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}

// Dial connects to the address of a grant to dial. It gives up as soon as ctx ends or
// the grant is revoked; from then on it is the caller's to ask for that
// ([auth.Grant.OnRevoke]). An error that is not the system's wraps [auth.ErrDenied]; EMFILE
// means that only the descriptors in reserve are left.
func Dial(ctx context.Context, grant *auth.Grant) (net.Conn, error) {
	if !grant.Dials() {
		return nil, fmt.Errorf("%w: no leave to dial", auth.ErrDenied)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	grant.OnRevoke(cancel)
	addr := grant.Addr()
	d := net.Dialer{KeepAliveConfig: KeepAlive, Control: func(network, address string, conn syscall.RawConn) error {
		// The last gate: whatever happened above, nothing else is connected to.
		if to, err := netip.ParseAddrPort(address); err != nil || plain(to) != addr || !grant.Dials() {
			return fmt.Errorf("%w: %s is not %s", auth.ErrDenied, address, addr)
		}
		return reserve.Control(network, address, conn)
	}}
	conn, err := d.DialContext(ctx, string(grant.Network()), addr.String())
	if revoked := context.Cause(ctx); err != nil && errors.Is(revoked, auth.ErrDenied) {
		return nil, revoked
	}
	return conn, err
}

// Listen listens at the address of a grant to listen to TCP. Where the grant leaves the
// port to the system, the given one is taken, unless it is 0. The unspecified address
// of IPv6 means all addresses, of both families. The listener is the caller's to
// close, when the grant is revoked too. An error that is not the system's wraps
// [auth.ErrDenied].
func Listen(ctx context.Context, grant *auth.Grant, port uint16) (*net.TCPListener, error) {
	if !grant.Listens() || grant.Network() != auth.TCP {
		return nil, fmt.Errorf("%w: no leave to listen", auth.ErrDenied)
	}
	addr := grant.Addr()
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), port)
	}
	network, address := "tcp6", addr.String()
	switch {
	case addr.Addr().Is4():
		network = "tcp4"
	case addr.Addr().IsUnspecified(): // both families, as far as there are two
		network, address = "tcp", net.JoinHostPort("", strconv.Itoa(int(addr.Port())))
	}
	lc := net.ListenConfig{KeepAliveConfig: KeepAlive, Control: reserve.Control}
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(ln.Addr().String())
	if err == nil {
		err = grant.Bound(at)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

func plain(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}
