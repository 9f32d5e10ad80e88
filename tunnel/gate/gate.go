package gate

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"culvert/auth"
)

// KeepAlive is what connections of streams are probed with.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}

// Dial connects to the address of a grant to dial. An error that is not the
// system's wraps [auth.ErrDenied].
func Dial(ctx context.Context, grant *auth.Grant) (net.Conn, error) {
	if !grant.Dials() {
		return nil, fmt.Errorf("%w: no leave to dial", auth.ErrDenied)
	}
	d := net.Dialer{KeepAliveConfig: KeepAlive, Control: func(_, address string, _ syscall.RawConn) error {
		// The last gate: whatever happened above, nothing else is connected to.
		if addr, err := netip.ParseAddrPort(address); err != nil || plain(addr) != grant.Addr() || !grant.Dials() {
			return fmt.Errorf("%w: %s is not %s", auth.ErrDenied, address, grant.Addr())
		}
		return nil
	}}
	return d.DialContext(ctx, "tcp", grant.Addr().String())
}

// Listen listens at the address of a grant to listen. The unspecified address means
// all addresses, of both families. An error that is not the system's wraps
// [auth.ErrDenied].
func Listen(ctx context.Context, grant *auth.Grant) (net.Listener, error) {
	if !grant.Listens() {
		return nil, fmt.Errorf("%w: no leave to listen", auth.ErrDenied)
	}
	addr := grant.Addr()
	network, address := "tcp6", addr.String()
	switch {
	case addr.Addr().Is4():
		network = "tcp4"
	case addr.Addr().IsUnspecified(): // both families, as far as there are two
		network, address = "tcp", net.JoinHostPort("", strconv.Itoa(int(addr.Port())))
	}
	lc := net.ListenConfig{KeepAliveConfig: KeepAlive}
	return lc.Listen(ctx, network, address)
}

func plain(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}
