package config

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestFrontProblems(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"values", "acme-domain: [localhost, 192.0.2.1, \"*.example.com\", a..example]\nacme-email: me\nacme-directory: http://a.example\n", lines(
			`FILE:2: acme-domain: "localhost" is not the name of a host in the DNS; write it like tunnel.example.com`,
			`FILE:2: acme-domain: "192.0.2.1" is not the name of a host in the DNS; write it like tunnel.example.com`,
			`FILE:2: acme-domain: "*.example.com" is not the name of a host in the DNS; write it like tunnel.example.com`,
			`FILE:2: acme-domain: "a..example" is not the name of a host in the DNS; write it like tunnel.example.com`,
			`FILE:3: acme-email: "me" is not an e-mail address; write it like admin@example.com`,
			`FILE:4: acme-directory: is not an https URL; write it like https://acme.example/directory`)},
		{"two certificates", "tls-cert: a\ntls-key: b\nacme-domain: a.example\n",
			"FILE:4: acme-domain: gets a certificate, and there is one already (FILE:2); give one of the two"},
		{"ACME without a name", "acme-email: a@example.com\nacme-http: \":80\"\n", lines(
			"FILE:2: acme-email: means nothing without --acme-domain; give --acme-domain too or leave it out",
			"FILE:3: acme-http: means nothing without --acme-domain; give --acme-domain too or leave it out")},
		{"roots for Let's Encrypt", "acme-domain: a.example\nacme-ca: x\n",
			"FILE:3: acme-ca: is for an authority of your own; give --acme-directory too or leave it out"},
		{"client certificates without TLS", "client-ca: x\nclient-cert: require\n", lines(
			"FILE:2: client-ca: means nothing without TLS; give --tls-cert and --tls-key, or --acme-domain",
			"FILE:3: client-cert: means nothing without TLS; give --tls-cert and --tls-key, or --acme-domain")},
		{"client certificates without authorities", "acme-domain: a.example\nclient-cert: require\n",
			"FILE:3: client-cert: needs the authorities of the certificates; give --client-ca"},
		{"client certificates off", "acme-domain: a.example\nclient-cert: off\nclient-ca: x\n",
			"FILE:4: client-ca: means nothing when clients show no certificate (FILE:3); give one of the two"},
		{"site and fallback", "site: x\nfallback: http://a.example\n",
			"FILE:3: fallback: is given together with --site (FILE:2); give one of the two"},
		{"a fallback with a path", "fallback: http://a.example/b\n",
			"FILE:2: fallback: has something behind the host; write it like http://127.0.0.1:8000 or https://www.example.com"},
		{"a fallback with a credential", "fallback: http://a:sesame@a.example\n",
			"FILE:2: fallback: has a credential in it; write it like http://127.0.0.1:8000 or https://www.example.com"},
		{"no fallback", "fallback: ftp://a.example\n",
			"FILE:2: fallback: is not the URL of a web server; write it like http://127.0.0.1:8000 or https://www.example.com"},
		{"origins", "allow-origin: [\"*\", https://a.example/, https://A.example, https://a.example:443, a.example]\n", lines(
			`FILE:2: allow-origin: "*" is not an origin; write it as browsers do, like https://app.example or http://localhost:3000`,
			`FILE:2: allow-origin: "https://a.example/" is not an origin; write it as browsers do, like https://app.example or http://localhost:3000`,
			`FILE:2: allow-origin: "https://A.example" is not an origin; write it as browsers do, like https://app.example or http://localhost:3000`,
			`FILE:2: allow-origin: "https://a.example:443" is not an origin; write it as browsers do, like https://app.example or http://localhost:3000`,
			`FILE:2: allow-origin: "a.example" is not an origin; write it as browsers do, like https://app.example or http://localhost:3000`)},
		{"proxies", "trusted-proxy: [10.0.0.0/33, proxy.internal]\n", lines(
			`FILE:2: trusted-proxy: "10.0.0.0/33" is no network; write it like 10.0.0.0/8 or 10.0.0.1`,
			`FILE:2: trusted-proxy: "proxy.internal" is no network; write it like 10.0.0.0/8 or 10.0.0.1`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, "token: x\n"+tt.file, nil, nil)
			_, _, err := LoadServer(src)
			checkProblems(t, src, err, tt.want)
		})
	}
}

func TestFront(t *testing.T) {
	file := "token: x\ntls-cert: a\ntls-key: b\nclient-ca: c\nfallback: https://www.example.com/\n" +
		"trusted-proxy: [10.1.2.3/8, \"::ffff:192.0.2.1\", fd00::1, 0.0.0.0/0]\n"
	s, warnings, err := LoadServer(sources(t, file, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::1/128"), netip.MustParsePrefix("0.0.0.0/0"),
	}
	if s.ClientCert != "optional" || s.Fallback.Host != "www.example.com" || !reflect.DeepEqual(s.TrustedProxies, want) {
		t.Errorf("%q %v %v", s.ClientCert, s.Fallback, s.TrustedProxies)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "trusted-proxy 0.0.0.0/0") {
		t.Errorf("warnings %q", warnings)
	}
}

// The case of a domain does not matter.
func TestACMEDomainInCapitals(t *testing.T) {
	s, _, err := LoadServer(sources(t, "token: x\nacme-domain: [Tunnel.Example.com, b.example]\n", nil, nil))
	if err != nil || !slices.Equal(s.ACMEDomains, []string{"tunnel.example.com", "b.example"}) {
		t.Errorf("%q, %v", s.ACMEDomains, err)
	}
}
