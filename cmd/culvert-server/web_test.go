package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// Clients show certificates of the authorities that the file has now.
func TestClientAuthoritiesChange(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	certificate(t, in("cert.pem"), in("key.pem"))
	oldPEM, oldCert := ownAuthority(t, 1)
	newPEM, newCert := ownAuthority(t, 2)
	put := func(content []byte) {
		if err := os.WriteFile(in("clients.pem"), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(oldPEM)
	job, address := running(t, map[string][]string{
		"tls-cert": {in("cert.pem")}, "tls-key": {in("key.pem")}, "client-ca": {in("clients.pem")}, "client-cert": {"require"},
	})
	tickets := make(map[*tls.Certificate]tls.ClientSessionCache) // of each client
	served := func(cert *tls.Certificate) bool {
		t.Helper()
		if tickets[cert] == nil {
			tickets[cert] = tls.NewLRUClientSessionCache(0)
		}
		return visit(t, address, &tls.Config{ClientSessionCache: tickets[cert]}, cert) != nil
	}
	reload := func() {
		t.Helper()
		if _, err := reloaded(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	if !served(oldCert) || served(newCert) {
		t.Error("before: not the authority that there is")
	}
	put(append(oldPEM, newPEM...))
	reload()
	if !served(oldCert) || !served(newCert) {
		t.Error("an authority that was added is not known")
	}
	put(newPEM)
	reload()
	if served(oldCert) || !served(newCert) {
		t.Error("an authority that was removed is still known")
	}
}

// A certificate that is revoked ends the handshake where one is required, in a session that
// is resumed, too. Where it is optional, its client is a stranger.
func TestRevokedInTheHandshake(t *testing.T) {
	for _, tt := range []struct {
		mode      string
		version   uint16
		wantAfter bool // whether visitors with the certificate are served
	}{
		{"require", tls.VersionTLS12, false}, {"require", tls.VersionTLS13, false}, {"optional", tls.VersionTLS13, true},
	} {
		t.Run(tt.mode+" "+tls.VersionName(tt.version), func(t *testing.T) {
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			certificate(t, in("cert.pem"), in("key.pem"))
			authority, ca := ownAuthority(t, 1)
			put := func(name string, content []byte) {
				if err := os.WriteFile(in(name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			put("clients.pem", authority)
			put("crl.pem", revocationList(t, ca))
			job, address := running(t, map[string][]string{
				"tls-cert": {in("cert.pem")}, "tls-key": {in("key.pem")},
				"client-ca": {in("clients.pem")}, "client-cert": {tt.mode}, "crl": {in("crl.pem")},
			})
			good, bad := clientCertificate(t, ca, 11), clientCertificate(t, ca, 12)
			cfg := &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0), MaxVersion: tt.version}
			for _, resumed := range []bool{false, true} {
				if state := visit(t, address, cfg, bad); state == nil || state.DidResume != resumed {
					t.Fatalf("before: %+v, want resumed: %v", state, resumed)
				}
			}
			put("crl.pem", revocationList(t, ca, bad))
			if _, err := reloaded(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			if state := visit(t, address, cfg, bad); (state != nil) != tt.wantAfter {
				t.Errorf("a session of before: %+v", state)
			}
			if state := visit(t, address, &tls.Config{MaxVersion: tt.version}, bad); (state != nil) != tt.wantAfter {
				t.Errorf("a new session: %+v", state)
			}
			if visit(t, address, &tls.Config{MaxVersion: tt.version}, good) == nil {
				t.Error("another certificate is refused")
			}
		})
	}
}

// running is a server with a token and these flags, which runs until the test ends.
func running(t *testing.T, flags map[string][]string) (job *program.Job, address string) {
	t.Helper()
	flags["listen"], flags["token"] = []string{"127.0.0.1:0"}, []string{secret}
	flags["log-format"], flags["grace"] = []string{"json"}, []string{"0s"}
	log, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	job, err := prepare(config.Sources{Flags: flags}, io.Discard, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(job.Close)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- job.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	var line struct{ Address string }
	for lines := json.NewDecoder(log); line.Address == ""; {
		if err := lines.Decode(&line); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	return job, line.Address
}

// visit makes a request with a certificate and returns the state of TLS, nil if nothing is
// answered.
func visit(t *testing.T, address string, cfg *tls.Config, cert *tls.Certificate) *tls.ConnectionState {
	t.Helper()
	cfg = cfg.Clone()
	cfg.InsecureSkipVerify, cfg.NextProtos = true, []string{"http/1.1"}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: cfg}, Timeout: 20 * time.Second}
	resp, err := client.Get("https://" + address)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusNotFound || resp.TLS.NegotiatedProtocol != "http/1.1" {
		t.Errorf("answered %s over %q, %v", resp.Status, resp.TLS.NegotiatedProtocol, err)
	}
	return resp.TLS
}

// clientCertificate is one that the authority has signed.
func clientCertificate(t *testing.T, ca *tls.Certificate, serial int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("client ", serial)}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, leafOf(t, ca), key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func leafOf(t *testing.T, cert *tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// revocationList is a list of an authority.
func revocationList(t *testing.T, ca *tls.Certificate, revoked ...*tls.Certificate) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, cert := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: leafOf(t, cert).SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, leafOf(t, ca), ca.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// A server of which only the certificate can change outlives the SIGHUP of who has
// renewed that.
func TestCertificateAloneIsReloaded(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certificate(t, cert, key)
	job, err := prepare(config.Sources{Flags: map[string][]string{
		"listen": {"127.0.0.1:0"}, "token": {secret}, "tls-cert": {cert}, "tls-key": {key},
	}}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	if job.Reload == nil {
		t.Fatal("SIGHUP ends it")
	}
	if _, err := reloaded(t.Context(), job); err != nil {
		t.Error(err)
	}
	certificate(t, filepath.Join(dir, "other.pem"), key)
	if _, err := reloaded(t.Context(), job); err == nil || !strings.HasPrefix(err.Error(), "--tls-cert: ") {
		t.Errorf("a certificate without its key: %v", err)
	}
}

// reloaded has all parts of a job reloaded, and returns their warnings and errors.
func reloaded(ctx context.Context, job *program.Job) (warnings []string, err error) {
	for _, part := range job.Reload.Parts {
		more, failed := part.Do(ctx)
		warnings, err = append(warnings, more...), errors.Join(err, failed)
	}
	return warnings, err
}

// ownAuthority is a client's certificate that is its own authority.
func ownAuthority(t *testing.T, serial int64) ([]byte, *tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("client ", serial)}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
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
