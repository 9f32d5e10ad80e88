package auth

import (
	"net/netip"
	"slices"
)

// special is a network that is denied to all unless a rule names it: it is never the
// service that somebody meant to share. A connection there ends in the machine
// itself, or is answered with the machine's own credentials.
type special struct {
	network netip.Prefix
	what    string
}

const metadata = "a cloud metadata address"

// specials are those of dials. Single addresses stand before the networks around
// them.
var specials = []special{
	{netip.MustParsePrefix("100.100.100.200/32"), metadata}, // Alibaba
	{netip.MustParsePrefix("168.63.129.16/32"), metadata},   // Azure's wire server
	{netip.MustParsePrefix("192.0.0.192/32"), metadata},     // Oracle
	{netip.MustParsePrefix("fd00:ec2::254/128"), metadata},  // AWS
	{netip.MustParsePrefix("fd00:ec2::23/128"), metadata},   // AWS, credentials of pods
	{netip.MustParsePrefix("fd20:ce::254/128"), metadata},   // Google
	{netip.MustParsePrefix("fd00:42::42/128"), metadata},    // Scaleway
	{netip.MustParsePrefix("0.0.0.0/8"), "the unspecified address"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"}, // the metadata of most clouds, too
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
}

// specialOf is the special network that ip is in, nil if it is in none.
func specialOf(ip netip.Addr) *special {
	i := slices.IndexFunc(specials, func(s special) bool { return s.network.Contains(ip) })
	if i < 0 {
		return nil
	}
	return &specials[i]
}

// translator is an IPv6 network whose addresses may lead to an IPv4 address inside them.
type translator struct {
	network netip.Prefix
	at      [][4]int // bytes of the IPv4 address, for each place where it may be
	allows  bool     // a rule that allows the IPv4 address allows this one: every machine translates it
}

var translators = []translator{
	{netip.MustParsePrefix("64:ff9b::/96"), last, true}, // NAT64 (RFC 6052)
	// NAT64 of a site (RFC 8215), with whichever length of prefix (RFC 6052, 2.2).
	{netip.MustParsePrefix("64:ff9b:1::/48"), [][4]int{last[0], {6, 7, 9, 10}, {7, 9, 10, 11}, {9, 10, 11, 12}}, false},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), last, false},             // SIIT (RFC 2765)
	{netip.MustParsePrefix("2002::/16"), [][4]int{{2, 3, 4, 5}}, false}, // 6to4 (RFC 3056)
	{netip.MustParsePrefix("::/96"), last, false},                       // IPv4-compatible (RFC 4291, 2.5.5.1)
}

var last = [][4]int{{12, 13, 14, 15}}

// translatorOf returns the network of translators that ip is in, or nil.
func translatorOf(ip netip.Addr) *translator {
	if !ip.Is6() || ip.IsUnspecified() || ip.IsLoopback() {
		return nil
	}
	i := slices.IndexFunc(translators, func(t translator) bool { return t.network.Contains(ip) })
	if i < 0 {
		return nil
	}
	return &translators[i]
}

// inside returns the IPv4 addresses that ip, in the network of t, may lead to, at least
// one. Where there are several places, one with an address that nobody connects to is
// left out: those are other bytes, or parts of the address at another place.
func (t *translator) inside(ip netip.Addr) []netip.Addr {
	b := ip.As16()
	var all, likely []netip.Addr
	for _, at := range t.at {
		inner := netip.AddrFrom4([4]byte{b[at[0]], b[at[1]], b[at[2]], b[at[3]]})
		all = append(all, inner)
		if first := b[at[0]]; first != 0 && first < 224 {
			likely = append(likely, inner)
		}
	}
	if len(likely) > 0 {
		return likely
	}
	return all[:1]
}
