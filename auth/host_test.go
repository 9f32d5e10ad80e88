package auth

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for text, want := range map[string]string{
		"169.254.169.254":          "169.254.169.254",
		"169.254.169.254.":         "169.254.169.254",
		"2852039166":               "169.254.169.254",
		"2852039166.":              "169.254.169.254",
		"0xa9fea9fe":               "169.254.169.254",
		"0XA9FEA9FE":               "169.254.169.254",
		"025177524776":             "169.254.169.254",
		"0251.0376.0251.0376":      "169.254.169.254",
		"00251.0376.0251.00376":    "169.254.169.254",
		"0xa9.0xfe.0xa9.0xfe":      "169.254.169.254",
		"169.254.43518":            "169.254.169.254",
		"169.0xfe.43518":           "169.254.169.254",
		"169.16689662":             "169.254.169.254",
		"::ffff:169.254.169.254":   "169.254.169.254",
		"::FFFF:A9FE:A9FE":         "169.254.169.254",
		"0:0:0:0:0:ffff:a9fe:a9fe": "169.254.169.254",
		"127.1":                    "127.0.0.1",
		"0":                        "0.0.0.0",
		"0x0":                      "0.0.0.0",
		"1.2.3":                    "1.2.0.3",
		"::1":                      "::1",
		"0:0::0:1":                 "::1",
		"0000:0000:0000:0000:0000:0000:0000:0001": "::1",
		"fe80::1%eth0": "fe80::1%eth0",

		"db.example":         "db.example",
		"DB.Example":         "db.example",
		"db.example.":        "db.example.",
		"xn--bcher-kva.test": "xn--bcher-kva.test",
		"_sip.example":       "_sip.example",
		"LocalHost.":         "localhost",
		"localhost":          "localhost",
		"1.example":          "1.example",
		"0x":                 "", // no digits
		"a.0x":               "",

		"":                               "",
		".":                              "",
		"a..b":                           "",
		".a":                             "",
		"a..":                            "",
		"256.1.1.1":                      "",
		"1.2.3.4.5":                      "",
		"4294967296":                     "",
		"1.2.3.256":                      "",
		"08.1.1.1":                       "",
		"0xg":                            "0xg",
		"1.2.3.0xffff":                   "",
		"-1":                             "-1",
		"+1.2.3.4":                       "",
		"1_0.2.3.4":                      "",
		"::1.":                           "",
		"[::1]":                          "",
		"a b":                            "",
		" 127.0.0.1":                     "",
		"127.0.0.1\n":                    "",
		"127.0.0.1\x00.a":                "",
		"bücher.test":                    "xn--bcher-kva.test",
		"BÜCHER.test.":                   "xn--bcher-kva.test.",
		"１２７.0.0.1":                      "",
		"127。0。0。1":                      "",
		"a/b":                            "",
		"10.0.0.0/8":                     "",
		"a:80":                           "",
		"*":                              "",
		strings.Repeat("a", 64):          "",
		strings.Repeat("a.", 126) + "ab": "",
	} {
		host, err := ParseHost(text)
		if got := host.String(); err == nil && got != want || err != nil && want != "" || err == nil && want == "" {
			t.Errorf("%q is %q, %v, want %q", text, got, err, want)
		}
		if err != nil && (len(err.Error()) > 500 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q: not one line: %v", text, err)
		}
	}
}

// FuzzParseHost checks that a host is an address or a name in its one spelling, that
// no resolver could take for a number.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"127.1", "0xa9fea9fe", "a.b.", "fe80::1%eth0", "1.2.3.4", "0x.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, err := ParseHost(text)
		if err != nil {
			return
		}
		again, err := ParseHost(host.String())
		if err != nil || again != host {
			t.Errorf("%q is %q, which is %q, %v", text, host, again, err)
		}
		if host.addr.IsValid() == (host.name != "") || host.addr.Is4In6() {
			t.Errorf("%q is %+v", text, host)
		}
		if _, err := netip.ParseAddr(host.name); err == nil {
			t.Errorf("the name %q is an address", host.name)
		}
	})
}
