package config

import (
	"cmp"
	"net/mail"
	"net/netip"
	"net/url"
	"strings"

	"culvert/auth/hostname"
)

// checkFront looks at what strangers see of the server.
func (l *loader) checkFront(s *Server) {
	secure := s.TLSCert != "" || len(s.ACMEDomains) > 0 || l.failed("tls-cert", "tls-key", "acme-domain")
	if s.TLSCert != "" && len(s.ACMEDomains) > 0 {
		l.problem("acme-domain", 0, "give one of the two", "gets a certificate, and there is one already (%s)", l.origin("tls-cert", 0))
	}
	for _, name := range []string{"acme-email", "acme-cache", "acme-directory", "acme-ca", "acme-http"} {
		if l.given(name) && len(s.ACMEDomains) == 0 && !l.failed("acme-domain") {
			l.problem(name, 0, "give --acme-domain too or leave it out", "means nothing without --acme-domain")
		}
	}
	if l.given("acme-ca") && s.ACMEDirectory == "" && !l.failed("acme-directory") {
		l.problem("acme-ca", 0, "give --acme-directory too or leave it out", "is for an authority of your own")
	}
	for _, name := range []string{"client-ca", "client-cert"} {
		if l.given(name) && !secure && (name != "client-cert" || s.ClientCert != "off") {
			l.problem(name, 0, "give --tls-cert and --tls-key, or --acme-domain", "means nothing without TLS")
		}
	}
	if s.ClientCert == "" {
		s.ClientCert = "off"
		if s.ClientCA != "" {
			s.ClientCert = "optional"
		}
	}
	switch {
	case s.ClientCert != "off" && s.ClientCA == "" && !l.failed("client-ca"):
		l.problem("client-cert", 0, "give --client-ca", "needs the authorities of the certificates")
	case s.ClientCert == "off" && s.ClientCA != "":
		l.problem("client-ca", 0, "give one of the two", "means nothing when clients show no certificate (%s)", l.origin("client-cert", 0))
	}
	for i, name := range s.ACMEDomains {
		ascii, _ := hostname.ASCII(name) // which was checked
		s.ACMEDomains[i] = strings.ToLower(ascii)
	}
	l.exclusive("site", "fallback")
	if s.fallback != "" {
		s.Fallback, _ = url.Parse(s.fallback)
	}
	for _, text := range s.trustedProxies {
		network, _ := parseNetwork(text)
		s.TrustedProxies = append(s.TrustedProxies, network)
		if network.Bits() == 0 {
			l.warn("everybody is a trusted proxy (trusted-proxy " + text + "): whoever connects can say that it is from anywhere")
		}
	}
}

// parseNetwork reads a network, or an address alone, in any spelling of IPv4.
func parseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(text); err != nil {
			return netip.Prefix{}, err
		}
		network = netip.PrefixFrom(addr, addr.BitLen())
	}
	if addr := network.Addr(); addr.Is4In6() && network.Bits() >= 96 {
		network = netip.PrefixFrom(addr.Unmap(), network.Bits()-96)
	}
	return network.Masked(), nil
}

func checkNetwork(text string) error {
	if _, err := parseNetwork(text); err != nil {
		return wrong("write it like 10.0.0.0/8 or 10.0.0.1", "%q is no network", text)
	}
	return nil
}

// checkDomain checks a name to get a certificate for: no wildcards, which need a
// challenge that is answered in the DNS, and no addresses.
func checkDomain(text string) error {
	_, addr := netip.ParseAddr(text)
	_, err := hostname.ASCII(text)
	if err != nil || addr == nil || !strings.Contains(strings.Trim(text, "."), ".") || strings.ContainsFunc(text, notHost) || strings.Contains(text, "..") {
		return wrong("write it like tunnel.example.com", "%q is not the name of a host in the DNS", text)
	}
	return nil
}

func notHost(r rune) bool {
	return r < 0x80 && r != '.' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

func checkEmail(text string) error {
	if a, err := mail.ParseAddress(text); err != nil || a.Address != text {
		return wrong("write it like admin@example.com", "%q is not an e-mail address", text)
	}
	return nil
}

func checkHTTPS(text string) error {
	if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return wrong("write it like https://acme.example/directory", "is not an https URL")
	}
	return nil
}

// checkFallback checks the URL of a web server, which never has a path: requests keep
// theirs. It does not repeat the URL, since there may be a secret in it.
func checkFallback(text string) error {
	const hint = "write it like http://127.0.0.1:8000 or https://www.example.com"
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.HasSuffix(u.Host, ":"):
		return wrong(hint, "is not the URL of a web server")
	case u.User != nil:
		return wrong(hint, "has a credential in it")
	case cmp.Or(u.Path, "/") != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return wrong(hint, "has something behind the host")
	}
	return nil
}

// checkOrigin checks that text is as browsers send it (RFC 6454, 6.2).
func checkOrigin(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme+"://"+u.Host != text || strings.ToLower(text) != text || strings.HasSuffix(text, "*") ||
		u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" {
		return wrong("write it as browsers do, like https://app.example or http://localhost:3000", "%q is not an origin", text)
	}
	return nil
}
