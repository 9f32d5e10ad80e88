package front

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// backend is a web server behind a reverse proxy. It does not know by which name its
// visitors reach it, and names itself in the headers of its answers.
type backend struct {
	scheme, host, port string // host in lower case, an IPv6 address without brackets
}

func newBackend(target *url.URL) backend {
	return backend{
		scheme: target.Scheme,
		host:   strings.ToLower(target.Hostname()),
		port:   cmp.Or(target.Port(), defaultPort(target.Scheme)),
	}
}

func defaultPort(scheme string) string {
	if scheme == "https" || scheme == "wss" {
		return "443"
	}
	return "80"
}

// origin is the scheme and host[:port] by which visitors reach the reverse proxy. The
// host is empty for a request that does not say.
type origin struct{ scheme, host string }

// hostname returns the host without the port, in lower case.
func (o origin) hostname() string {
	return strings.ToLower((&url.URL{Host: o.host}).Hostname())
}

// references are headers whose URLs may be relative. A path leads visitors to where
// they came from, also where a proxy in front has not said by which name and scheme.
var references = map[string]bool{
	"Location": true, "Content-Location": true, "Refresh": true, "Link": true, "Sourcemap": true, "X-Sourcemap": true,
}

// hide replaces the backend's name in the headers of an answer to a visitor of outer.
// What names other servers stays, and so does everything but headers.
func (b backend) hide(header http.Header, outer origin) {
	header.Del("Alt-Svc") // other ways to reach the backend, none of which leads here
	for name, values := range header {
		for i, value := range values {
			switch {
			case name == "Set-Cookie":
				values[i] = b.hideCookieDomain(value, outer.hostname())
			case references[name]:
				values[i] = b.replace(value, pathOnly)
			case outer.host != "":
				values[i] = b.replace(value, outer.absolute)
			case b.replace(value, pathOnly) != value:
				delete(header, name) // there is nothing to put in its place
			}
		}
	}
}

// pathOnly returns what follows the host in a URL of the backend.
func pathOnly(_, rest string) string {
	switch {
	case !strings.HasPrefix(rest, "/"):
		return "/"
	case len(rest) > 1 && strings.ContainsRune("/\\\t", rune(rest[1])):
		return "/." // what looks like // would begin another host's name
	default:
		return ""
	}
}

// absolute is the beginning of a URL of the same kind as one of the backend's.
func (o origin) absolute(scheme, _ string) string {
	switch {
	case scheme == "":
		return "//" + o.host
	case strings.HasPrefix(scheme, "ws"):
		return strings.Replace(o.scheme, "http", "ws", 1) + "://" + o.host
	default:
		return o.scheme + "://" + o.host
	}
}

// beginning is that of a URL: scheme, which may be left out, host and port.
var beginning = regexp.MustCompile(`(?i)(?:(https?|wss?):)?//(\[[0-9a-f:.]+\]|[\w.-]+)(?::(\d*))?`)

// replace replaces the beginning of each URL in text that names the backend. with is
// asked for the replacement, and told the URL's scheme, in lower case, and the rest of
// the text.
func (b backend) replace(text string, with func(scheme, rest string) string) string {
	var out strings.Builder
	done := 0
	for _, m := range beginning.FindAllStringSubmatchIndex(text, -1) {
		part := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return strings.ToLower(text[m[2*i]:m[2*i+1]])
		}
		scheme, host, port := part(1), strings.Trim(part(2), "[]"), part(3)
		rest := text[m[1]:]
		if scheme == "" && m[0] > 0 && !strings.ContainsRune(" \t<\"'=,;(", rune(text[m[0]-1])) {
			continue // in the middle of a path, or of another scheme
		}
		if strings.HasPrefix(rest, "@") || !b.is(scheme, host, port) { // before an @ it is a user's name
			continue
		}
		out.WriteString(text[done:m[0]])
		out.WriteString(with(scheme, rest))
		done = m[1]
	}
	return out.String() + text[done:]
}

// is reports whether a URL names the backend. A URL without a scheme has the
// backend's, one without a port that of its scheme.
func (b backend) is(scheme, host, port string) bool {
	port = cmp.Or(port, defaultPort(cmp.Or(scheme, b.scheme)))
	host = strings.TrimSuffix(host, ".")
	return port == b.port && (host == b.host || loopback(host) && loopback(b.host))
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// hideCookieDomain removes the Domain of a cookie if it is the backend's and not also
// that of its visitors, whose browsers would refuse the cookie. Without a Domain a
// cookie is for the name that the visitor asked for.
func (b backend) hideCookieDomain(cookie, visitors string) string {
	parts := strings.Split(cookie, ";")
	kept := parts[:1] // the cookie itself
	for _, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		domain := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(value), "."))
		if !strings.EqualFold(strings.TrimSpace(name), "Domain") || !within(b.host, domain) || within(visitors, domain) {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ";")
}

// within reports whether a cookie of a domain is for a host.
func within(host, domain string) bool {
	return host == domain || domain != "" && strings.HasSuffix(host, "."+domain) && net.ParseIP(host) == nil
}
