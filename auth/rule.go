package auth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Network is a transport protocol.
type Network string

// The networks. A rule without one is about all of them.
const (
	TCP Network = "tcp"
	UDP Network = "udp"
)

// Rule allows or denies some hosts and ports. It is made by ParseRule or Exactly.
type Rule struct {
	text    string
	allow   bool
	network Network // "": all
	hosts   hosts
	ports   []portRange
	exact   bool // made by Exactly
}

// hosts is the host part of a rule: exactly one of them is set.
type hosts struct {
	all    bool         // *
	local  bool         // localhost: every loopback address
	prefix netip.Prefix // an address or a network
	name   string       // a name
	under  string       // of *.name: ".name"
}

type portRange struct{ first, last uint16 }

// String is the rule as it was written.
func (r Rule) String() string { return r.text }

// ParseRule reads "allow HOST:PORTS" or "deny HOST:PORTS".
//
// HOST is an address or a network (IPv6 in brackets), a name, "*.name" for all names
// under it, "localhost" for every loopback address, or "*". PORTS is a port, a range
// "8000-8080", several of both with commas, or "*"; port 0, in a rule about
// listeners, is one that the system chooses. Before HOST there may be "tcp" or
// "udp". Errors say what is wrong and how it is written.
func ParseRule(text string) (Rule, error) {
	words := strings.Fields(text)
	r := Rule{text: strings.Join(words, " ")}
	if len(words) == 0 || words[0] != "allow" && words[0] != "deny" {
		return Rule{}, fmt.Errorf("rule %.200q does not begin with allow or deny; write it like allow 10.0.0.0/8:22", text)
	}
	r.allow = words[0] == "allow"
	words = words[1:]
	if len(words) == 2 {
		r.network = Network(words[0])
		if r.network != TCP && r.network != UDP {
			return Rule{}, fmt.Errorf("rule %.200q: %.100q is not a network; write tcp, udp or nothing before the host", r.text, words[0])
		}
		words = words[1:]
	}
	if len(words) != 1 {
		return Rule{}, fmt.Errorf("rule %.200q does not have one HOST:PORTS; write it like allow 10.0.0.0/8:22", r.text)
	}
	host, ports, err := net.SplitHostPort(words[0])
	if err != nil {
		return Rule{}, fmt.Errorf("rule %.200q: %.200q is not HOST:PORTS; write it like 10.0.0.0/8:22, [2001:db8::/32]:443 or *:*", r.text, words[0])
	}
	if r.hosts, err = parseHosts(host); err != nil {
		return Rule{}, fmt.Errorf("rule %.200q: %w", r.text, err)
	}
	if r.ports, err = parsePorts(ports); err != nil {
		return Rule{}, fmt.Errorf("rule %.200q: %w", r.text, err)
	}
	return r, nil
}

// Exactly returns a rule that allows host at port, whatever its name leads to and
// however special that is: for what the owner of this machine asked for himself.
func Exactly(host Host, port uint16) Rule {
	r := Rule{
		text: "allow " + net.JoinHostPort(host.String(), strconv.Itoa(int(port))), allow: true, exact: true,
		hosts: hosts{name: host.name}, ports: []portRange{{port, port}},
	}
	if host.addr.IsValid() {
		ip := host.addr.WithZone("")
		r.hosts.prefix = netip.PrefixFrom(ip, ip.BitLen())
	}
	return r
}

func parseHosts(text string) (hosts, error) {
	if text == "*" {
		return hosts{all: true}, nil
	}
	if strings.Contains(text, "/") {
		prefix, err := parsePrefix(text)
		return hosts{prefix: prefix}, err
	}
	if name, ok := strings.CutPrefix(text, "*."); ok {
		host, err := ParseHost(name)
		if err != nil || host.addr.IsValid() {
			return hosts{}, fmt.Errorf("%.100q is not *. and a name", text)
		}
		return hosts{under: "." + host.name}, nil
	}
	if strings.Contains(text, "*") {
		return hosts{}, fmt.Errorf("%.100q has a * inside; write *.name for all names under one, or * alone for every host", text)
	}
	host, err := ParseHost(text)
	switch {
	case text == "":
		return hosts{}, errors.New("there is no host; write * for every host")
	case err != nil:
		return hosts{}, fmt.Errorf("%w; write an address, a network, a name, *.name or *", err)
	case !host.addr.IsValid() && host.name == "localhost":
		return hosts{local: true}, nil
	case !host.addr.IsValid():
		return hosts{name: host.name}, nil
	case host.addr.Zone() != "":
		return hosts{}, fmt.Errorf("%.100q has a zone, which rules do not look at; write %s", text, host.addr.WithZone(""))
	}
	if _, err := netip.ParseAddr(text); err != nil {
		return hosts{}, fmt.Errorf("%.100q is an unclear way to write an address; write %s", text, host.addr)
	}
	return hosts{prefix: netip.PrefixFrom(host.addr, host.addr.BitLen())}, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%.100q is not a network; write it like 10.0.0.0/8 or [2001:db8::/32]", text)
	case prefix.Masked() != prefix:
		return netip.Prefix{}, fmt.Errorf("%.100q has more bits than its length says; write %s, or the address alone", text, prefix.Masked())
	case prefix.Addr().Is4In6(): // its length is at least 96
		return netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96), nil
	}
	return prefix, nil
}

func parsePorts(text string) ([]portRange, error) {
	if text == "*" {
		return []portRange{{0, 65535}}, nil
	}
	var all []portRange
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first > last {
			return nil, fmt.Errorf("%.100q is not a port or a range of ports; write it like 22, 8000-8080, 80,443 or *", part)
		}
		all = append(all, portRange{uint16(first), uint16(last)})
	}
	return all, nil
}

// matches reports whether the rule is about what q asks.
func (r Rule) matches(q question) bool {
	return (r.network == "" || r.network == q.network) && r.hasPort(q) && r.hasHost(q)
}

func (r Rule) hasPort(q question) bool {
	for _, p := range r.ports {
		if p.has(q.port) || q.chosen && p.has(0) {
			return true
		}
	}
	return false
}

func (p portRange) has(port uint16) bool { return p.first <= port && port <= p.last }

func (r Rule) hasHost(q question) bool {
	switch {
	case r.hosts.all:
		return true
	case r.hosts.name != "":
		return q.name == r.hosts.name
	case r.hosts.under != "":
		return strings.HasSuffix(q.name, r.hosts.under)
	case q.everywhere():
		return r.hasEverywhere(q)
	case r.hosts.local:
		return q.ip.IsLoopback() || !r.allow && q.leads(netip.Addr.IsLoopback)
	case !r.allow:
		return r.hosts.prefix.Contains(q.outer) || q.leads(r.hosts.prefix.Contains)
	case q.translator == nil:
		return r.hosts.prefix.Contains(q.ip)
	default:
		// A network which merely happens to contain outer does not allow what is inside.
		return q.translator.allows && r.hosts.prefix.Contains(q.ip) ||
			r.hosts.prefix.Contains(q.outer) && within(r.hosts.prefix, q.translator.network)
	}
}

// within reports whether all of prefix is in network.
func within(prefix, network netip.Prefix) bool {
	return network.Contains(prefix.Addr()) && prefix.Bits() >= network.Bits()
}

// hasEverywhere is hasHost for a listener at all addresses of a family, or of both
// if it is the one of IPv6. To deny some of them is to deny that; to allow it takes
// a rule for all of them.
func (r Rule) hasEverywhere(q question) bool {
	switch {
	case r.hosts.local:
		return !r.allow
	case r.allow:
		return r.hosts.prefix.Contains(q.ip) && (q.ip.Is4() && r.hosts.prefix.Bits() == 0 || r.hosts.prefix.IsSingleIP())
	default:
		return q.ip.Is6() || r.hosts.prefix.Addr().Is4()
	}
}

// reaches reports whether the rule, which matches and allows, means the address
// of q and does not just happen to include it.
func (r Rule) reaches(q question) bool {
	switch {
	case r.exact:
		return true
	case q.own && !r.namesOwn(q):
		return false
	case q.special != nil:
		return within(r.hosts.prefix, q.special.network)
	case q.everywhere():
		return r.hosts.name == "" && r.hosts.under == "" // whose owner could say so
	case q.leads(netip.Addr.IsLoopback) && (r.hosts.name != "" || r.hosts.under != ""):
		// Whoever owns a name may have it lead into this machine.
		return strings.HasSuffix(r.hosts.name+r.hosts.under, ".localhost")
	default:
		return true
	}
}

// namesOwn reports whether the rule is written with the very port and, for a dial, with
// a single address or localhost. It is the port that a listener takes from the server.
func (r Rule) namesOwn(q question) bool {
	for _, p := range r.ports {
		if p.first == q.port && p.last == q.port {
			return q.op == OpListen || r.hosts.local || r.hosts.prefix.IsSingleIP()
		}
	}
	return false
}
