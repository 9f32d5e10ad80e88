package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"culvert/auth/hostname"
)

// Host is a host as somebody spelt it, in its one spelling: an address, or a name
// that has yet to be looked up. The zero Host is neither.
type Host struct {
	addr   netip.Addr // an IPv4 address is never spelt as an IPv6 one
	name   string     // lower case and without a dot at its end; "" if there is addr
	rooted bool       // there was a dot: no search domain is to be tried
}

const (
	maxName  = 253 // characters of a name (RFC 1035, 2.3.4)
	maxLabel = 63
)

// ParseHost reads an address, without brackets, or a name. What ends in a number is
// never a name: it is an IPv4 address in any of the spellings that inet_aton takes
// (2130706433, 0x7f.1, 0177.0.0.1), which some resolvers take too, or nothing.
func ParseHost(text string) (Host, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return Host{addr: addr.Unmap()}, nil
	}
	ascii, err := hostname.ASCII(text)
	if err != nil {
		return Host{}, err
	}
	name, rooted := strings.CutSuffix(ascii, ".")
	name = strings.ToLower(name)
	if name == "" {
		return Host{}, errors.New("no host")
	}
	if err := checkName(name); err != nil {
		return Host{}, fmt.Errorf("host %.100q: %w", text, err)
	}
	number := numeric(name[strings.LastIndexByte(name, '.')+1:])
	if number && ascii != text { // digits that are not ASCII make no address
		return Host{}, fmt.Errorf("host %.100q ends in a number that is not written in ASCII", text)
	}
	if !number {
		return Host{name: name, rooted: rooted && name != "localhost"}, nil // which systems know without the dot only
	}
	addr, ok := parseNumbers(name)
	if !ok {
		return Host{}, fmt.Errorf("host %.100q ends in a number and is no IPv4 address", text)
	}
	return Host{addr: addr}, nil
}

// HostOf is the host with this address.
func HostOf(addr netip.Addr) Host { return Host{addr: addr.Unmap()} }

// Addr is the address, not valid if the host is a name.
func (h Host) Addr() netip.Addr { return h.addr }

// String is the address, or the name as a resolver is to be asked for it.
func (h Host) String() string {
	switch {
	case h.addr.IsValid():
		return h.addr.String()
	case h.rooted:
		return h.name + "."
	default:
		return h.name
	}
}

// checkName says what keeps name from being one. Underscores are no letters of host
// names, but there are hosts that have one.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a name has at most %d characters", maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return fmt.Errorf("between two dots there are 1 to %d characters", maxLabel)
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return errors.New("a name has letters, digits, - and _ only (others as xn--...)")
			}
		}
	}
	return nil
}

// numeric reports whether a label is a number for inet_aton.
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// parseNumbers reads an IPv4 address as inet_aton does: one to four numbers, each
// decimal, octal (0...) or hexadecimal (0x...), of which the last one fills all the
// bytes that are left.
func parseNumbers(text string) (netip.Addr, bool) {
	parts := strings.Split(text, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var all uint64
	for i, part := range parts {
		base, digits := 10, part
		if hex, ok := strings.CutPrefix(part, "0x"); ok {
			base, digits = 16, hex
		} else if strings.HasPrefix(part, "0") {
			base = 8
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 32 - 8*i
		}
		n, err := strconv.ParseUint(digits, base, bits)
		if err != nil {
			return netip.Addr{}, false
		}
		all = all<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(all >> 24), byte(all >> 16), byte(all >> 8), byte(all)}), true
}
