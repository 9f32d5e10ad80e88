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

// translators are the IPv6 networks whose addresses lead to the IPv4 address inside
// them, at byte at: to dial one is to dial the other.
var translators = []struct {
	network netip.Prefix
	at      int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64 (RFC 6052)
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},  // NAT64 of a site (RFC 8215), as it is mostly used
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // SIIT (RFC 2765)
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4 (RFC 3056)
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible (RFC 4291, 2.5.5.1)
}

// embedded returns the IPv4 address inside ip if it is in a network of translators,
// and otherwise ip.
func embedded(ip netip.Addr) netip.Addr {
	if !ip.Is6() || ip.IsUnspecified() || ip.IsLoopback() {
		return ip
	}
	for _, t := range translators {
		if t.network.Contains(ip) {
			b := ip.As16()
			return netip.AddrFrom4([4]byte(b[t.at : t.at+4]))
		}
	}
	return ip
}
