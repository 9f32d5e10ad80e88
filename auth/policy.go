package auth

import "net/netip"

// Policy is what an identity may do: the first rule that matches decides, and what
// none matches is denied.
type Policy struct {
	Dial   []Rule
	Listen []Rule
}

// Everything is the policy of a server with one user: every address but those that
// are denied to all may be dialled, and every port on loopback may be listened at.
func Everything() Policy {
	return Policy{Dial: []Rule{mustParse("allow *:*")}, Listen: []Rule{mustParse("allow localhost:*")}}
}

func mustParse(text string) Rule {
	r, err := ParseRule(text)
	if err != nil {
		panic(err)
	}
	return r
}

// question is what a policy is asked.
type question struct {
	op   string
	host string // as the client spelt it
	addr netip.AddrPort
	own  bool // one of the server's own listeners
}

// verdict is the answer, and the rule that it comes from.
type verdict struct {
	allowed bool
	rule    string
}

// judge finds the first rule that matches. An address that is denied to all, since
// it is never the service that somebody meant to share and hands out a machine's
// own credentials or leads back into it, is matched only by rules that name it.
func (p Policy) judge(q question) verdict {
	rules, special := p.Dial, q.special()
	if q.op == opListen {
		rules = p.Listen
	}
	for _, r := range rules {
		if !r.matches(q) || special != "" && r.allow && !r.namesAddr(q.addr.Addr()) {
			continue
		}
		return verdict{r.allow, r.text}
	}
	if special != "" {
		return verdict{rule: special}
	}
	return verdict{rule: "no rule allows it"}
}

// special says why an address is denied to all, "" if it is not.
func (q question) special() string {
	ip := q.addr.Addr()
	switch {
	case !ip.IsValid():
		return "not an address"
	case q.op == opListen && ip.IsMulticast():
		return "a multicast address"
	case q.op == opListen:
		return ""
	case q.own:
		return "the server itself"
	}
	return deniedDial(ip)
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
