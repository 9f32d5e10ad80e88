package config

import (
	"net/netip"
	"strconv"
	"strings"

	"culvert/auth/hostname"
)

const (
	// localhost is where a forward listens that does not say, at both loopback
	// addresses, and the target of one that names none.
	localhost = "localhost"
	// anyAddress stands for all addresses of the machine in Forward.Bind.
	anyAddress = "*"
)

// Forward is a listener and the target of its connections, as in ssh -L and -R.
type Forward struct {
	Bind   string // IP address without brackets, host name, or "*" for all addresses
	Port   int    // 0 to 65535, 0 for any free one
	Target string // host:port, an IPv6 host in brackets; port 1 to 65535
}

// ParseForward reads "[BIND:]PORT:HOST:PORT". IPv6 addresses stand in brackets.
// Without BIND it is localhost; an empty BIND or "*" means all addresses. "PORT:PORT" has
// the target localhost, and so has "PORT", with the same port.
func ParseForward(s string) (Forward, error) {
	const hint = "write [BIND:]PORT:HOST:PORT with IPv6 addresses in brackets, PORT:PORT or PORT"
	parts, ok := split(s)
	if !ok || len(parts) > 4 {
		return Forward{}, wrong(hint, "%q is not a forward", s)
	}
	f := Forward{Bind: localhost}
	switch len(parts) {
	case 1:
		if _, err := parts[0].port(1); err != nil {
			return Forward{}, wrong(hint, "%q is not a forward", s)
		}
		parts = []part{parts[0], {text: localhost}, parts[0]}
	case 2:
		if _, err := parts[1].port(1); err != nil {
			return Forward{}, wrong(hint, "%q is not a forward", s)
		}
		parts = []part{parts[0], {text: localhost}, parts[1]}
	}
	if len(parts) == 4 {
		switch bind := parts[0]; {
		case bind.text == "" && !bind.bracketed, bind.text == anyAddress:
			f.Bind = anyAddress
		default:
			var err error
			if f.Bind, err = bind.host(); err != nil {
				return Forward{}, err
			}
		}
		parts = parts[1:]
	}
	var err error
	if f.Port, err = parts[0].port(0); err != nil {
		return Forward{}, err
	}
	host, err := parts[1].host()
	if err != nil {
		return Forward{}, err
	}
	port, err := parts[2].port(1)
	if err != nil {
		return Forward{}, err
	}
	f.Target = joinHostPort(host, port)
	return f, nil
}

// String is what ParseForward reads, with the bind address always said.
func (f Forward) String() string { return f.address() + ":" + f.Target }

// address is where f listens.
func (f Forward) address() string { return joinHostPort(f.Bind, f.Port) }

// collides reports whether f and other cannot listen at the same time.
func (f Forward) collides(other Forward) bool {
	if f.Port != other.Port || f.Port == 0 {
		return false
	}
	return f.all() || other.all() || strings.EqualFold(f.Bind, other.Bind) || f.covers(other) || other.covers(f)
}

// covers reports whether f listens at localhost, and so at the address of other too.
func (f Forward) covers(other Forward) bool {
	return strings.EqualFold(f.Bind, localhost) && (other.Bind == "127.0.0.1" || other.Bind == "::1")
}

// all reports whether f listens on all addresses.
func (f Forward) all() bool {
	ip, err := netip.ParseAddr(f.Bind)
	return f.Bind == anyAddress || err == nil && ip.IsUnspecified()
}

// part is what stands between two colons.
type part struct {
	text      string // without the brackets
	bracketed bool
}

// split cuts s at the colons outside of brackets. It is not ok when brackets do
// not match or do not enclose a whole part.
func split(s string) (parts []part, ok bool) {
	for {
		var p part
		if rest, found := strings.CutPrefix(s, "["); found {
			p.bracketed = true
			if p.text, s, found = strings.Cut(rest, "]"); !found {
				return nil, false
			}
		} else {
			end := strings.IndexByte(s, ':')
			if end < 0 {
				end = len(s)
			}
			p.text, s = s[:end], s[end:]
		}
		parts = append(parts, p)
		if s == "" {
			return parts, true
		}
		if s[0] != ':' {
			return nil, false
		}
		s = s[1:]
	}
}

// host checks an IP address or a host name; it returns an address in its usual
// spelling, and a name in ASCII.
func (p part) host() (string, error) {
	if ip, err := netip.ParseAddr(p.text); err == nil && ip.Is6() == p.bracketed {
		return ip.Unmap().String(), nil
	}
	if p.bracketed {
		return "", wrong("only IPv6 addresses stand in brackets", "[%s] is not an IPv6 address", quoteless(p.text))
	}
	strange := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
	}
	name, err := hostname.ASCII(p.text)
	if err != nil || name == "" || len(name) > 253 || strings.ContainsFunc(name, strange) {
		return "", wrong("give a host name or an IP address, IPv6 in brackets", "%q is not a host", p.text)
	}
	return name, nil
}

// port checks a decimal port of at least least.
func (p part) port(least int) (int, error) {
	n, err := parseDecimal(p.text)
	switch {
	case err != nil || p.bracketed:
		return 0, wrong("a port is a number from "+strconv.Itoa(least)+" to 65535", "%q is not a port", p.text)
	case n < int64(least) || n > 65535:
		return 0, wrong("give one from "+strconv.Itoa(least)+" to 65535", "port %d is out of range", n)
	}
	return int(n), nil
}

// parseHostPort reads HOST:PORT with an IPv6 host in brackets; host is "" when
// none is given.
func parseHostPort(s string, least int) (host string, port int, err error) {
	parts, ok := split(s)
	if !ok || len(parts) != 2 {
		return "", 0, wrong("write HOST:PORT with IPv6 addresses in brackets", "%q is not an address", s)
	}
	if parts[0] != (part{}) {
		if host, err = parts[0].host(); err != nil {
			return "", 0, err
		}
	}
	port, err = parts[1].port(least)
	return host, port, err
}

func joinHostPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// quoteless is s as %q shows it, without the quotes around it.
func quoteless(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
