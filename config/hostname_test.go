package config

import (
	"net/url"
	"testing"
)

// Host names in Unicode are converted wherever a user can give one.
func TestHostNamesInUnicode(t *testing.T) {
	c, _, err := LoadClient(Sources{Flags: map[string][]string{
		"server": {"wss://bücher.example:8443/x"}, "dial-address": {"bücher.example:443"}, "tls-server-name": {"BÜCHER.example"},
		"proxy": {"http://bücher.example:3128"}, "local": {"80:bücher.example:80"}, "remote": {"bücher.example:80:bücher.example:81"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	const ascii = "xn--bcher-kva.example"
	proxy, err := c.Proxy(&url.URL{Scheme: "http", Host: "other.example"})
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string][2]string{
		"server":          {c.Servers[0].String(), "wss://" + ascii + ":8443/x"},
		"dial-address":    {c.DialAddress, ascii + ":443"},
		"tls-server-name": {c.TLSServerName, ascii},
		"proxy":           {proxy.String(), "http://" + ascii + ":3128"},
		"local":           {c.Local[0].Target, ascii + ":80"},
		"remote":          {c.Remote[0].String(), ascii + ":80:" + ascii + ":81"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %s, want %s", what, got[0], got[1])
		}
	}
	s, _, err := LoadServer(Sources{Flags: map[string][]string{
		"acme-domain": {"Bücher.example"}, "acme-email": {"a@b.example"}, "insecure-no-auth": {"true"},
	}})
	if err != nil || s.ACMEDomains[0] != ascii {
		t.Errorf("acme-domain is %v, %v", s, err)
	}
	for _, flags := range []map[string][]string{
		{"server": {"wss://\u200dü.example"}}, {"server": {"wss://a"}, "tls-server-name": {"\u200dü"}},
		{"server": {"wss://a"}, "dial-address": {"\u200dü:1"}}, {"server": {"wss://a"}, "proxy": {"http://\u200dü:1"}},
	} {
		if _, _, err := LoadClient(Sources{Flags: flags}); err == nil {
			t.Errorf("%v is taken", flags)
		}
	}
}
