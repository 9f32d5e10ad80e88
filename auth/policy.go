package auth

import (
	"net/netip"
	"slices"
)

// Policy is what an identity may do: the first rule that matches decides, and what
// none matches is denied.
//
// Rules see addresses. A rule with an address or a network matches whatever the
// client called it; a rule with a name matches when the client asked for that name,
// and then its owner decides where it leads. So what is to be unreachable is denied
// by its address: a deny with a name stops nobody who asks for the address, or for
// another name of it.
//
// Some addresses are never what somebody meant to share, and are allowed by rules
// that name them only, which * and a network around them do not:
//   - link-local, unspecified, multicast and broadcast addresses and those of cloud
//     metadata services: by that address, or a network of nothing else;
//   - the server's own listeners: by the address, or localhost, with that port;
//   - loopback, if the client asked for a name: by anything but the name, unless
//     that ends in localhost.
//
// An IPv6 address may lead to an IPv4 address inside it: NAT64 does, and 6to4 and others
// did. To deny the IPv4 address, by a rule or as one of those above, is to deny those
// IPv6 addresses too. To allow it is to allow that of NAT64 (64:ff9b::/96) only, which
// every network takes for the same host; the others are allowed by * and by rules with
// a network inside of theirs, such as 2002::/16.
//
// A listener never has a port of the server's own, at whichever address, unless the
// rule names that very port: see [Guard.Protect].
//
// Rules for listeners are about the address that is bound. One that allows some
// addresses does not allow to listen at all of them at once, and one that denies
// some denies that too.
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

// What a policy is asked about.
const (
	OpDial   = "dial"
	OpListen = "listen"
)

// question is what a policy is asked.
type question struct {
	op      string
	network Network
	name    string // that the client asked for, "" if it was an address
	port    uint16
	chosen  bool // the port, by the system

	ip     netip.Addr   // without a zone; of a dial through NAT64, the IPv4 address
	outer  netip.Addr   // that ip was found in, or ip
	inside []netip.Addr // IPv4 addresses that a dial of outer may lead to

	translator *translator // that leads there; nil: none

	own     bool     // one of the server's own listeners or, of a listener, a port of the server's own
	special *special // that ip is in, or nil
}

// newQuestion is the question for leave to reach, or to bind, addr.
func newQuestion(op string, network Network, name string, addr netip.AddrPort) question {
	ip := addr.Addr().Unmap().WithZone("")
	q := question{op: op, network: network, name: name, port: addr.Port(), ip: ip, outer: ip}
	if op == OpListen {
		if ip.IsMulticast() {
			q.special = specialOf(ip)
		}
		return q
	}
	if q.translator = translatorOf(ip); q.translator != nil {
		q.inside = q.translator.inside(ip)
		if q.translator.allows {
			q.ip = q.inside[0]
		}
	}
	q.special = specialOf(q.ip)
	for _, inner := range q.inside {
		if q.special == nil {
			q.special = specialOf(inner)
		}
	}
	return q
}

// leads reports whether is is true of an address that would or may be reached.
func (q question) leads(is func(netip.Addr) bool) bool {
	return is(q.ip) || slices.ContainsFunc(q.inside, is)
}

// everywhere reports whether q asks for all addresses of the machine.
func (q question) everywhere() bool { return q.op == OpListen && q.ip.IsUnspecified() }

// Verdict is what a policy says.
type Verdict struct {
	Allowed bool
	Rule    int    // index of the rule that decided, in Policy.Dial or Policy.Listen; -1: none did
	Why     string // that rule as it is written, or why there is none
}

// judge finds the first rule that matches.
func (p Policy) judge(q question) Verdict {
	rules := p.Dial
	if q.op == OpListen {
		rules = p.Listen
	}
	none := Verdict{Rule: -1, Why: "no rule allows it"}
	switch {
	case !q.ip.IsValid():
		none.Why = "not an address"
		return none
	case q.own && q.op == OpListen:
		none.Why = "a port of the server's own, which no rule names"
	case q.own:
		none.Why = "the server's own listener, which no rule names"
	case q.special != nil:
		none.Why = q.special.what + ", which no rule names"
	}
	for i, r := range rules {
		if !r.matches(q) {
			continue
		}
		if r.allow && !r.reaches(q) {
			switch {
			case q.own, q.special != nil:
			case q.everywhere():
				none.Why = "a name that leads to every address, which no rule names"
			default:
				none.Why = "a name that leads to loopback, which no rule names"
			}
			continue
		}
		return Verdict{Allowed: r.allow, Rule: i, Why: r.text}
	}
	return none
}
