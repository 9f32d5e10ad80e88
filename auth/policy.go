package auth

import "net/netip"

// Policy is asked for every dial and for every listener, whatever asks for them.
// Both methods answer at once, never block and may be called concurrently; nil
// allows, anything else wraps [ErrDenied].
type Policy interface {
	// DialAddr judges the resolved address that is about to be dialled for
	// identity. A name is resolved by the caller, which asks for the very
	// address it then dials.
	DialAddr(identity string, addr netip.AddrPort) error

	// Listen judges the resolved address that is about to be listened on for
	// identity. The unspecified address means every address of the machine;
	// port 0 means any free one.
	Listen(identity string, addr netip.AddrPort) error
}

// Builtin is the policy that applies before anything is configured: every
// identity may dial every address but those that [Builtin.DialAddr] names, and
// may listen on loopback.
type Builtin struct {
	// GatewayPorts allows listening on addresses other than loopback, as sshd's
	// option of that name does.
	GatewayPorts bool
}

var _ Policy = Builtin{}

// DialAddr denies addresses that are never the service that somebody meant to
// share and that hand out a machine's own credentials or lead back into it: cloud
// metadata services, link-local, unspecified and multicast addresses.
func (p Builtin) DialAddr(identity string, addr netip.AddrPort) error {
	if rule := deniedDial(addr.Addr()); rule != "" {
		return &DeniedError{Identity: identity, Op: "dial", Addr: addr, Rule: rule}
	}
	return nil
}

// Listen denies what is not a loopback address unless GatewayPorts is set, and
// multicast always.
func (p Builtin) Listen(identity string, addr netip.AddrPort) error {
	deny := func(rule string) error {
		return &DeniedError{Identity: identity, Op: "listen", Addr: addr, Rule: rule}
	}
	ip := addr.Addr().Unmap()
	switch {
	case !ip.IsValid():
		return deny("not an address")
	case ip.IsMulticast():
		return deny("a multicast address")
	case !ip.IsLoopback() && !p.GatewayPorts:
		return deny("not a loopback address, and gateway ports are off")
	}
	return nil
}

// deniedDial names the rule that forbids dialling ip, "" if none does.
func deniedDial(ip netip.Addr) string {
	// A zone only selects an interface; Prefix.Contains never matches with one.
	ip = embedded(ip.WithZone("").Unmap())
	switch {
	case !ip.IsValid():
		return "not an address"
	case ip.IsUnspecified():
		return "the unspecified address"
	case ip.IsLinkLocalUnicast():
		return "a link-local address"
	case ip.IsMulticast():
		return "a multicast address"
	case ip == netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x00, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54}),
		ip == netip.AddrFrom4([4]byte{100, 100, 100, 200}):
		return "a cloud metadata address"
	}
	return ""
}

// embedded returns the IPv4 address inside an IPv6 address of a kind that
// networks translate (RFC 6052 NAT64, RFC 3056 6to4, the IPv4-compatible form of
// RFC 4291), so that a translator is no way around a rule. Other addresses are
// returned as they are.
func embedded(ip netip.Addr) netip.Addr {
	if !ip.Is6() {
		return ip
	}
	b := ip.As16()
	at := -1
	switch {
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}: // 64:ff9b::/96
		at = 12
	case b[0] == 0x20 && b[1] == 0x02: // 2002::/16
		at = 2
	case [12]byte(b[:12]) == [12]byte{} && !ip.IsUnspecified() && !ip.IsLoopback(): // ::/96
		at = 12
	}
	if at < 0 {
		return ip
	}
	return netip.AddrFrom4([4]byte(b[at : at+4]))
}
