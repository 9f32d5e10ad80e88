package tunnel

import (
	"context"
	"net/netip"

	"culvert/auth"
)

// Ruling is what a guard says of one address.
type Ruling struct {
	Addr netip.AddrPort
	auth.Verdict
}

// Own reports what is a server's own that has these listeners and backends, each
// "host:port": what its guard protects ([auth.Guard.Protect]).
func Own(ctx context.Context, listeners, backends []string) (func(op string, addr netip.AddrPort) bool, error) {
	o := newOwn()
	if err := o.setBackends(ctx, nil, backends); err != nil {
		return nil, err
	}
	for _, l := range listeners {
		if err := o.addBind(ctx, l); err != nil {
			return nil, err
		}
	}
	return o.is, nil
}

// ExplainDial says what a server with this guard would do about an identity's stream
// to "host:port": it resolves the name and asks about every address, and dials
// nothing. An error is a *TargetError.
func ExplainDial(ctx context.Context, guard *auth.Guard, identity, target string) ([]Ruling, error) {
	host, addrs, err := lookup(nil).targets(ctx, target)
	if err != nil {
		return nil, err
	}
	var rulings []Ruling
	for _, addr := range addrs {
		rulings = append(rulings, Ruling{addr, guard.Explain(auth.OpDial, identity, auth.TCP, host, addr)})
	}
	return rulings, nil
}

// ExplainListen is ExplainDial for a remote forward that is to listen at "host:port".
func ExplainListen(ctx context.Context, guard *auth.Guard, identity, bind string) ([]Ruling, error) {
	host, addr, err := bindAddr(ctx, bind, nil)
	if err != nil {
		return nil, err
	}
	return []Ruling{{addr, guard.Explain(auth.OpListen, identity, auth.TCP, host, addr)}}, nil
}
