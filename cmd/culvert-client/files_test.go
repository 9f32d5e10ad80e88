package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/config"
	"culvert/mux/carrier"
)

// userFiles returns every kind of text file that a user gives to the client, by the
// option that names it.
func userFiles(t *testing.T, until time.Time) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	key := auth.NewPrivateKey("client")
	if err := key.Save(path); err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cert, certKey := selfSigned(t, until)
	return map[string]string{
		"config":        "# the client\ncarrier: http\n",
		"token-file":    secret + "\n",
		"password-file": secret + "\n",
		"header-file":   "X-Door: open\n",
		"key-file":      string(private),
		"known-servers": "h.example:443 " + key.Public().String() + "\n",
		"tls-ca":        cert,
		"tls-cert":      cert,
		"tls-key":       certKey,
	}
}

// checkFiles has the client use files as often as it dials.
func checkFiles(t *testing.T, path map[string]string) {
	t.Helper()
	for _, tt := range []struct {
		options    []string
		user       string
		credential string
		sealed     bool
	}{
		{[]string{"config", "token-file", "header-file", "tls-ca", "tls-cert", "tls-key"}, "", secret, false},
		{[]string{"password-file"}, "alice", carrier.Basic("alice", secret), false},
		{[]string{"key-file", "known-servers"}, "", "", true},
	} {
		flags := map[string][]string{"server": {"wss://h.example"}}
		for _, option := range tt.options {
			flags[option] = []string{path[option]}
		}
		if tt.user != "" {
			flags["user"] = []string{tt.user}
		}
		for range 2 { // as when the configuration is read again
			s, err := load(t.Context(), config.Sources{Flags: flags}, io.Discard)
			if err != nil {
				t.Errorf("%v: %v", tt.options, err)
				break
			}
			if tt.credential != "" {
				if got, err := s.client.Credential(); err != nil || got != tt.credential {
					t.Errorf("%v: the credential is %q, %v", tt.options, got, err)
				}
			}
			if s.client.SecretHeader != nil {
				if got, err := s.client.SecretHeader(); err != nil || got.Get("X-Door") != "open" || s.cfg.Carrier != "http" {
					t.Errorf("the headers are %v, %v; the carrier is %q", got, err, s.cfg.Carrier)
				}
				if got, err := s.client.TLS.GetClientCertificate(new(tls.CertificateRequestInfo)); err != nil || got.Leaf.Subject.CommonName != "laptop" {
					t.Errorf("the certificate is %v, %v", got, err)
				}
			}
			if tt.sealed {
				if seal, err := s.client.Seal(&url.URL{Scheme: "wss", Host: "h.example"}); err != nil || seal.Key == nil || !strings.HasSuffix(seal.Where, ":1") {
					t.Errorf("sealed with %v, %v", seal.Where, err)
				}
			}
		}
	}
}

// Every text file may begin with a byte order mark.
func TestByteOrderMark(t *testing.T) {
	paths := make(map[string]string)
	for option, content := range userFiles(t, time.Now().AddDate(1, 0, 0)) {
		paths[option] = filepath.Join(t.TempDir(), option)
		if err := os.WriteFile(paths[option], []byte("\ufeff"+content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	checkFiles(t, paths)
}

// A server that is added to the file of known servers does not lose those before it.
func TestKnownServersWithByteOrderMark(t *testing.T) {
	known := filepath.Join(t.TempDir(), "known_servers")
	key := auth.NewPrivateKey("server").Public()
	if err := os.WriteFile(known, []byte("\ufeffa:1 "+key.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := addKnown(known, "b:2", key); err != nil {
		t.Fatal(err)
	}
	if got, err := readKnown(known); err != nil || got["a:1"].line != 1 || got["b:2"].line != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

// The client warns of its own certificate.
func TestExpiringCertificate(t *testing.T) {
	for _, tt := range []struct {
		left time.Duration
		want string
	}{
		{-time.Hour, "the certificate CN=laptop has expired ("},
		{13 * 24 * time.Hour, "the certificate CN=laptop expires soon ("},
		{15 * 24 * time.Hour, ""},
	} {
		flags := map[string][]string{"server": {"wss://h.example"}, "local": {"1:h:1"}}
		files := userFiles(t, time.Now().Add(tt.left))
		for _, option := range []string{"tls-cert", "tls-key"} {
			path := filepath.Join(t.TempDir(), option)
			if err := os.WriteFile(path, []byte(files[option]), 0o600); err != nil {
				t.Fatal(err)
			}
			flags[option] = []string{path}
		}
		job, err := prepare(config.Sources{Flags: flags}, strings.NewReader(""), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(job.Warnings, "\n"); (text == "") != (tt.want == "") || !strings.Contains(text, tt.want) {
			t.Errorf("%v left: %q, want %q", tt.left, text, tt.want)
		}
		job.Close()
	}
}

// The client warns, once for each, of files that others can change.
func TestLooseFiles(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // where modes say nothing
	}
	paths := make(map[string]string)
	for option, content := range userFiles(t, time.Now().AddDate(1, 0, 0)) {
		paths[option] = filepath.Join(t.TempDir(), option)
		if err := os.WriteFile(paths[option], []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, options := range [][]string{
		{"config", "token-file", "header-file", "tls-ca", "tls-cert", "tls-key"}, {"password-file"}, {"key-file", "known-servers"},
	} {
		flags := map[string][]string{"server": {"wss://h.example"}}
		for _, option := range options {
			flags[option] = []string{paths[option]}
			if option == "password-file" {
				flags["user"] = []string{"alice"}
			}
		}
		for _, option := range options {
			if option == "tls-cert" { // of no use without its key
				continue
			}
			for mode, warned := range map[os.FileMode]bool{0o660: true, 0o602: true, 0o600: false} {
				if err := os.Chmod(paths[option], mode); err != nil {
					t.Fatal(err)
				}
				s, err := load(t.Context(), config.Sources{Flags: flags}, io.Discard)
				if err != nil {
					t.Fatal(err)
				}
				text := strings.Join(s.warnings, "\n")
				if got := strings.HasPrefix(text, paths[option]+": ") && strings.Contains(text, "changed by others"); got != warned || len(s.warnings) > 1 {
					t.Errorf("%s, mode %o: %q, want a warning: %v", option, mode, text, warned)
				}
				if err := os.Chmod(paths[option], 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// selfSigned is a certificate and its key.
func selfSigned(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "laptop"}, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	pkcs8, err2 := x509.MarshalPKCS8PrivateKey(private)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}
