package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"culvert/auth"
)

// Ruling is what a guard says of one address, and by which rule.
type Ruling struct {
	Addr    netip.AddrPort
	Allowed bool
	Rule    string // of the policy, or what about the address is not allowed
}

// ExplainDial says what a server with this guard would do about an identity's stream
// to "host:port": it resolves the name and asks about every address, and dials
// nothing. An error is a *TargetError.
func ExplainDial(ctx context.Context, guard *auth.Guard, identity, target string) ([]Ruling, error) {
	d := &dialer{guard: guard, identity: identity}
	host, addrs, err := d.addresses(ctx, target)
	if err != nil {
		return nil, err
	}
	var rulings []Ruling
	for _, addr := range addrs {
		rulings = append(rulings, rulingOf(guard.Dial(identity, host, addr)))
	}
	return rulings, nil
}

// ExplainListen is ExplainDial for a remote forward that is to listen at "host:port".
func ExplainListen(ctx context.Context, guard *auth.Guard, identity, bind string) ([]Ruling, error) {
	addr, err := bindAddr(ctx, bind)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(bind)
	return []Ruling{rulingOf(guard.Listen(identity, host, addr))}, nil
}

// rulingOf is the answer of a guard, which is given back.
func rulingOf(grant *auth.Grant, err error) Ruling {
	if denied, ok := errors.AsType[*auth.DeniedError](err); ok {
		return Ruling{Addr: denied.Addr, Rule: denied.Rule}
	}
	defer grant.Release()
	return Ruling{Addr: grant.Addr(), Allowed: true, Rule: grant.Rule()}
}
