package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestHardeningExample loads the files in docs/hardening.md and asks who may do what.
func TestHardeningExample(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "hardening.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	examples := regexp.MustCompile("(?s)<!-- example: (\\S+) -->\n```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(examples) != 2 {
		t.Fatalf("there are %d examples", len(examples))
	}
	for _, example := range examples {
		path := filepath.Join(dir, example[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(example[2], "/etc/culvert", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate(t, filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "privkey.pem"))

	command := func(args ...string) (stdout, stderr string, code int) {
		var out, err strings.Builder
		args = append([]string{"culvert-server", args[0], "--config", filepath.Join(dir, "server.yaml")}, args[1:]...)
		code = run(t.Context(), args, nil, &out, &err)
		return out.String(), err.String(), code
	}
	if stdout, stderr, code := command("check"); code != 0 || stdout != "ok: 2 identities, 5 rules\n" || stderr != "" {
		t.Errorf("check: exit code %d, %s%s", code, stdout, stderr)
	}
	for _, tt := range []struct {
		identity, op, address string
		rule                  string // that allows it, "" for denied
	}{
		{"deploy", "dial", "10.20.0.5:22", "allow 10.20.0.5:22"},
		{"deploy", "dial", "10.20.0.5:80", ""},
		{"deploy", "dial", "10.20.0.6:22", ""},
		{"deploy", "listen", "localhost:8000", ""},
		{"alice", "dial", "10.1.2.3:22", "allow 10.0.0.0/8:22,443"},
		{"alice", "dial", "10.1.2.3:5432", ""},
		{"alice", "dial", "169.254.169.254:80", ""},
		{"alice", "dial", "localhost:22", ""},
		{"alice", "listen", "localhost:8009", "allow localhost:8000-8009"},
		{"alice", "listen", "localhost:8010", ""},
		{"alice", "listen", "*:8000", ""},
	} {
		stdout, _, code := command("explain", "--identity", tt.identity, tt.op, tt.address)
		if tt.rule == "" && (code != 3 || strings.Contains(stdout, ": allowed: ")) ||
			tt.rule != "" && (code != 0 || !strings.Contains(stdout, ": allowed: "+tt.rule+" (")) {
			t.Errorf("%s %s %s: exit code %d, %s", tt.identity, tt.op, tt.address, code, stdout)
		}
	}
}

// certificate writes a certificate and its key to files.
func certificate(t *testing.T, cert, key string) {
	t.Helper()
	certificateUntil(t, cert, key, time.Now().AddDate(1, 0, 0))
}

// certificateUntil is certificate with the end of the certificate, which is an authority
// too.
func certificateUntil(t *testing.T, cert, key string, end time.Time) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tunnel"}, DNSNames: []string{"tunnel.example.com"}, NotAfter: end,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
