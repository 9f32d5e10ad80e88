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
	log, w := io.Pipe()
	defer w.Close()
	job, err := prepare(config.Sources{Flags: map[string][]string{
		"listen": {"127.0.0.1:0"}, "token": {secret}, "tls-cert": {in("cert.pem")}, "tls-key": {in("key.pem")},
		"client-ca": {in("clients.pem")}, "client-cert": {"require"}, "log-format": {"json"}, "grace": {"0s"},
	}}, io.Discard, w)
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- job.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var line struct{ Address string }
	for lines := json.NewDecoder(log); line.Address == ""; {
		if err := lines.Decode(&line); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()

	tickets := make(map[*tls.Certificate]tls.ClientSessionCache) // of each client
	served := func(cert *tls.Certificate) bool {
		t.Helper()
		if tickets[cert] == nil {
			tickets[cert] = tls.NewLRUClientSessionCache(0)
		}
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, ClientSessionCache: tickets[cert], NextProtos: []string{"http/1.1"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		}}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + line.Address)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		if resp.TLS.NegotiatedProtocol != "http/1.1" {
			t.Errorf("protocol %q", resp.TLS.NegotiatedProtocol)
		}
		return resp.StatusCode == http.StatusNotFound
	}
	reload := func() {
		t.Helper()
		if _, err := reloaded(ctx, job); err != nil {
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

// reloaded has all parts of a job reloaded, and returns what comes of it.
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
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
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
