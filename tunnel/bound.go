package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"culvert/auth"
	"culvert/tunnel/gate"
)

// bound is an open listener with the grant to listen there.
type bound struct {
	*net.TCPListener
	grant *auth.Grant
}

// close gives the address back.
func (b bound) close() {
	_ = b.Close()
	b.grant.Release()
}

// addr is where it listens.
func (b bound) addr() netip.AddrPort { return b.grant.Addr() }

// chosenTries is how many ports that the system has chosen are tried: one may be taken at
// the other loopback address.
const chosenTries = 16

// listenAt opens what is needed to listen for host at addr, which grant allows: a listener
// there and, for localhost, another one at ::1 with the same port, as ssh does. Programs
// may try either address of localhost first. The second one is left out where the machine
// has no ::1, the policy does not allow it, or somebody else listens there; the log says
// the last. The grant is released on an error.
func listenAt(ctx context.Context, guard *auth.Guard, identity string, host auth.Host, grant *auth.Grant, log events) (all []bound, err error) {
	asked := grant.Addr().Port()
	for tries := 1; ; tries++ {
		first, err := gate.Listen(ctx, grant, 0)
		if err != nil {
			grant.Release()
			return nil, err
		}
		all = []bound{{first, grant}}
		if host.String() != localhost {
			return all, nil
		}
		six := netip.AddrPortFrom(netip.IPv6Loopback(), asked)
		other, err := guard.Listen(identity, auth.TCP, host, six)
		if err != nil {
			return all, nil
		}
		second, err := gate.Listen(ctx, other, all[0].addr().Port())
		if err == nil {
			return append(all, bound{second, other}), nil
		}
		other.Release()
		taken := errors.Is(err, errnoInUse)
		if !taken || asked != 0 || tries == chosenTries {
			if taken {
				log.Warn("forward listens at one address of localhost only", keyAddress, all[0].addr().String(), keyError, err)
			}
			return all, nil
		}
		all[0].close()
		if grant, err = guard.Listen(identity, auth.TCP, host, netip.AddrPortFrom(all[0].addr().Addr(), 0)); err != nil {
			return nil, err
		}
	}
}
