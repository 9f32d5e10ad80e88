package main

import (
	"crypto/tls"
	"io"
	"path/filepath"
	"testing"

	"culvert/cmd/internal/program"
	"culvert/config"
)

// What clients have to show follows --client-cert, and certificates of ACME are kept
// where systemd says.
func TestClientCertificates(t *testing.T) {
	state := t.TempDir()
	t.Setenv("STATE_DIRECTORY", state)
	ca := write(t, testCA)
	for _, tt := range []struct {
		flags map[string][]string
		want  tls.ClientAuthType
	}{
		{nil, tls.NoClientCert},
		{map[string][]string{"client-cert": {"off"}}, tls.NoClientCert},
		{map[string][]string{"client-ca": {ca}}, tls.VerifyClientCertIfGiven},
		{map[string][]string{"client-ca": {ca}, "client-cert": {"optional"}}, tls.VerifyClientCertIfGiven},
		{map[string][]string{"client-ca": {ca}, "client-cert": {"require"}}, tls.RequireAndVerifyClientCert},
	} {
		flags := map[string][]string{"token": {secret}, "acme-domain": {"a.example"}}
		for name, values := range tt.flags {
			flags[name] = values
		}
		cfg, _, err := config.LoadServer(config.Sources{Flags: flags})
		if err != nil {
			t.Fatal(err)
		}
		clientCAs, _, problem := newClientCAs(cfg)
		if problem != nil {
			t.Fatal(problem)
		}
		w, problems := newWeb(cfg, clientCAs, program.NewLogger(io.Discard, "text", 0))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if w.tls.ClientAuth != tt.want || (w.tls.ClientCAs != nil) != (tt.want != tls.NoClientCert) {
			t.Errorf("%v: %v", tt.flags, w.tls.ClientAuth)
		}
		challenge, err := w.tls.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: []string{"acme-tls/1"}})
		if err != nil || challenge == nil || challenge.ClientAuth != tls.NoClientCert {
			t.Errorf("%v: an authority is asked for a certificate", tt.flags)
		}
		for _, protocols := range [][]string{nil, {"http/1.1"}, {"acme-tls/1", "http/1.1"}} {
			if other, err := w.tls.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: protocols}); err != nil || other != nil {
				t.Errorf("%v: a client that offers %q is treated as an authority", tt.flags, protocols)
			}
		}
	}
	if found, _ := filepath.Glob(filepath.Join(state, "acme")); len(found) != 1 {
		t.Error("the cache is elsewhere")
	}
}

// testCA is an authority of nobody's.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBejCCASGgAwIBAgIUOYJ350Jiwn3m/XJWgn00b/lhmtQwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHQ2xpZW50czAgFw0yNjExMjMwODMzNDdaGA8yMTI2MTAzMDA4
MzM0N1owEjEQMA4GA1UEAwwHQ2xpZW50czBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABCpmtYM018PaZzzqImxhc0MYbC0ZjWB/D4pGpvQftsf9VUVLnwXw0r5MbEgN
QTXE3AwLLTLWW7gcC3Ho8iuvXeGjUzBRMB0GA1UdDgQWBBSxRf3rcc0Svz6egpVS
RrDi3gYDwzAfBgNVHSMEGDAWgBSxRf3rcc0Svz6egpVSRrDi3gYDwzAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0cAMEQCIAjUgPc6FkX9Guq/jwhUl9L8g1kD
z+kfVXOnEgsa+B4IAiAygaf7cSycVEVT+XhDGF+z65Hrl7RM93j/6+yHbq5YSQ==
-----END CERTIFICATE-----
`
