package auth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Rule allows or denies some addresses. It is made by ParseRule.
type Rule struct {
	text  string
	allow bool
	hosts hosts
	ports []portRange
}

// String is the rule as it was written.
func (r Rule) String() string { return r.text }

// hosts is the host part of a rule: exactly one of them is set.
type hosts struct {
	all      bool         // *
	local    bool         // localhost: every loopback address
	prefix   netip.Prefix // an address or a network
	name     string       // a name
	wildcard string       // of *.name: ".name"
}

type portRange struct{ first, last uint16 }

// ParseRule reads "allow HOST:PORTS" or "deny HOST:PORTS". HOST is an address or a
// network (IPv6 in brackets), a name, "*.name" for the names under it, "localhost"
// for the machine's loopback, or "*". PORTS is a port, a range "8000-8080", several
// of both with commas, or "*".
func ParseRule(text string) (Rule, error) {
	r := Rule{text: strings.Join(strings.Fields(text), " ")}
	action, rest, _ := strings.Cut(r.text, " ")
	switch action {
	case "allow":
		r.allow = true
	case "deny":
	default:
		return Rule{}, fmt.Errorf("%q does not begin with allow or deny", text)
	}
	host, ports, err := net.SplitHostPort(rest)
	if err != nil || strings.Contains(rest, " ") {
		return Rule{}, fmt.Errorf("%q is not HOST:PORTS; write it like 10.0.0.0/8:22 or *:443", rest)
	}
	if r.hosts, err = parseHosts(host); err != nil {
		return Rule{}, err
	}
	if r.ports, err = parsePorts(ports); err != nil {
		return Rule{}, err
	}
	return r, nil
}

func parseHosts(text string) (hosts, error) {
	name := canonicalName(text)
	switch {
	case name == "*":
		return hosts{all: true}, nil
	case name == "localhost":
		return hosts{local: true}, nil
	case name == "":
		return hosts{}, errors.New("names no host; write * for every host")
	}
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return hosts{prefix: prefix.Masked()}, nil
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		ip = ip.Unmap()
		return hosts{prefix: netip.PrefixFrom(ip, ip.BitLen())}, nil
	}
	if rest, ok := strings.CutPrefix(name, "*."); ok && rest != "" && !strings.Contains(rest, "*") {
		return hosts{wildcard: "." + rest}, nil
	}
	if strings.ContainsAny(name, "*/ ") {
		return hosts{}, fmt.Errorf("%q is not a host; write an address, a network, a name, *.name or *", text)
	}
	return hosts{name: name}, nil
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
			return nil, fmt.Errorf("%q is not a port or a range of ports; write it like 22, 8000-8080 or *", part)
		}
		all = append(all, portRange{uint16(first), uint16(last)})
	}
	return all, nil
}

// canonicalName is a host name in its one spelling.
func canonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (r Rule) matches(q question) bool {
	port := q.addr.Port()
	for _, p := range r.ports {
		if p.first <= port && port <= p.last {
			return r.hosts.match(q)
		}
	}
	return false
}

func (h hosts) match(q question) bool {
	ip, name := q.addr.Addr().WithZone(""), canonicalName(q.host)
	switch {
	case h.all:
		return true
	case h.local:
		return ip.IsLoopback()
	case h.name != "":
		return name == h.name
	case h.wildcard != "":
		return strings.HasSuffix(name, h.wildcard)
	default:
		return h.prefix.Contains(ip)
	}
}

// namesAddr reports whether the rule means ip and not just includes it: it is
// written with that one address, or with a network of addresses that are all as
// special.
func (r Rule) namesAddr(ip netip.Addr) bool {
	p := r.hosts.prefix
	return p.IsValid() && p.Contains(ip.WithZone("")) && (p.IsSingleIP() || deniedDial(p.Addr()) != "")
}
