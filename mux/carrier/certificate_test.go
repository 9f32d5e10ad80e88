package carrier_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/mux/carrier"
)

// issue makes a certificate from template, signed by its parent or by itself.
func issue(t *testing.T, template x509.Certificate, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	signer, signerKey := &template, any(key)
	var chain [][]byte
	if parent != nil {
		signer, signerKey, chain = parent.Leaf, parent.PrivateKey, parent.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, signer, key.Public(), signerKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key, Leaf: leaf}
}

func authority(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	return issue(t, x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
}

func trusting(cert *tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return pool
}

// website is a server that is no culvert, under TLS: a dial that gets through to
// its handler fails in the phase of the upgrade.
func website(t *testing.T, cfg *tls.Config) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = discardLog()
	srv.TLS = cfg
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// A certificate that does not verify says whom it is for and who signed it.
func TestDialNamesTheCertificate(t *testing.T) {
	trusted, proxy := authority(t, "Trusted CA"), authority(t, "Corp\nProxy CA")
	subject := pkix.Name{CommonName: "tunnel.example"}
	names := []string{"tunnel.example", "www.tunnel.example"}
	now := time.Now()
	tests := []struct {
		name string
		cert *tls.Certificate
		as   any
		want string // the beginning
	}{
		{
			"intercepted", issue(t, x509.Certificate{Subject: subject, DNSNames: names}, proxy), new(x509.UnknownAuthorityError),
			`certificate signed by none of the given authorities: issuer "CN=Corp\nProxy CA", subject "CN=tunnel.example", for "tunnel.example", "www.tunnel.example", valid from `,
		},
		{
			"another's", issue(t, x509.Certificate{DNSNames: []string{"a", "b", "c", "d", "e", "f", "g"}}, trusted), new(x509.HostnameError),
			`certificate for another name than "tunnel.example": issuer "CN=Trusted CA", subject "", for "a", "b", "c", "d", "e", and 2 more, valid from `,
		},
		{
			"nobody's", issue(t, x509.Certificate{Subject: pkix.Name{CommonName: strings.Repeat("x", 1000)}}, trusted), new(x509.HostnameError),
			`certificate for another name than "tunnel.example": issuer "CN=Trusted CA", subject "CN=` + strings.Repeat("x", 197) + `...", for no name, valid from `,
		},
		{
			"expired", issue(t, x509.Certificate{DNSNames: names, NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(-24 * time.Hour)}, trusted),
			new(x509.CertificateInvalidError), `certificate expired: issuer "CN=Trusted CA", `,
		},
		{
			"of tomorrow", issue(t, x509.Certificate{DNSNames: names, NotBefore: now.Add(24 * time.Hour), NotAfter: now.Add(48 * time.Hour)}, trusted),
			new(x509.CertificateInvalidError), `certificate not yet valid: issuer "CN=Trusted CA", `,
		},
		{
			"not for servers", issue(t, x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, trusted),
			new(x509.CertificateInvalidError), `certificate not acceptable ("`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := website(t, &tls.Config{Certificates: []tls.Certificate{*tt.cert}})
			d := carrier.Dialer{URL: parseURL(t, srv.URL), TLS: &tls.Config{RootCAs: trusting(trusted), ServerName: "tunnel.example"}}
			_, _, err := d.Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseTLS)
			if !errors.As(err, tt.as) || !carrier.Permanent(err) {
				t.Errorf("%v is no %T, or not permanent", err, tt.as)
			}
			want := "tls " + srv.Listener.Addr().String() + ": " + tt.want
			if text := err.Error(); !strings.HasPrefix(text, want) || strings.Contains(text, "\n") {
				t.Errorf("got  %s\nwant %s", text, want)
			}
			until := tt.cert.Leaf.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
			if !strings.HasSuffix(err.Error(), " to "+until) {
				t.Errorf("%v does not say until when it is valid, %s", err, until)
			}
		})
	}
}

func TestDialPins(t *testing.T) {
	root, other := authority(t, "Root"), authority(t, "Other")
	cert := issue(t, x509.Certificate{DNSNames: []string{"tunnel.example"}}, root)
	cert.Certificate = append(cert.Certificate, other.Certificate[0]) // which proves nothing
	srv := website(t, &tls.Config{Certificates: []tls.Certificate{*cert}})
	leafPin, rootPin, otherPin := carrier.PinOf(cert.Leaf), carrier.PinOf(root.Leaf), carrier.PinOf(other.Leaf)
	tests := []struct {
		name       string
		pins       []carrier.Pin
		unverified bool
		good       bool
	}{
		{"none", nil, false, true},
		{"the server's", []carrier.Pin{otherPin, leafPin}, false, true},
		{"the authority's", []carrier.Pin{rootPin}, false, true},
		{"another's", []carrier.Pin{otherPin}, false, false},
		{"unverified, none", nil, true, true},
		{"unverified, the server's", []carrier.Pin{leafPin}, true, true},
		{"unverified, the authority's", []carrier.Pin{rootPin}, true, false},
		{"unverified, another's", []carrier.Pin{otherPin}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			verified := false
			cfg := &tls.Config{
				RootCAs: trusting(root), ServerName: "tunnel.example", InsecureSkipVerify: tt.unverified,
				VerifyConnection: func(tls.ConnectionState) error { verified = true; return nil },
			}
			_, _, err := (&carrier.Dialer{URL: parseURL(t, srv.URL), TLS: cfg, Pins: tt.pins}).Dial(t.Context(), nil)
			if !verified {
				t.Error("the caller's check was left out")
			}
			if tt.good {
				phaseOf(t, err, carrier.PhaseUpgrade)
				return
			}
			phaseOf(t, err, carrier.PhaseTLS)
			if pin, ok := errors.AsType[*carrier.PinError](err); !ok || pin.Found != leafPin || !carrier.Permanent(err) {
				t.Errorf("got %v, want a permanent PinError for %s", err, leafPin)
			}
			if !strings.Contains(err.Error(), "public key "+leafPin.String()+" is not a pinned one: issuer \"CN=Root\", ") {
				t.Errorf("%v does not say what was found", err)
			}
		})
	}

	errNo := errors.New("no")
	cfg := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return errNo }}
	_, _, err := (&carrier.Dialer{URL: parseURL(t, srv.URL), TLS: cfg, Pins: []carrier.Pin{leafPin}}).Dial(t.Context(), nil)
	if !errors.Is(err, errNo) {
		t.Errorf("the caller's check was passed over: %v", err)
	}
}

func TestParsePin(t *testing.T) {
	pin := carrier.Pin{1, 2, 3}
	if got, err := carrier.ParsePin(pin.String()); err != nil || got != pin {
		t.Errorf("%s is read as %v, %v", pin, got, err)
	}
	// The first vector of RFC 7469.
	const vector = "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM="
	if got, err := carrier.ParsePin(vector); err != nil || got.String() != vector || got[0] != 0x77 {
		t.Errorf("%s is read as %v, %v", vector, got, err)
	}
	for _, bad := range []string{"", "sha256/", "sha256/AAAA", "sha1/" + vector[7:], vector[7:], vector + "A"} {
		if got, err := carrier.ParsePin(bad); !errors.Is(err, carrier.ErrInvalidDialer) {
			t.Errorf("%q is read as %v, %v", bad, got, err)
		}
	}
}

// A server that asks for a certificate says so in TLS, whenever its alert arrives.
func TestDialClientCertificate(t *testing.T) {
	root := authority(t, "Root")
	cert := issue(t, x509.Certificate{DNSNames: []string{"tunnel.example"}}, root)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			srv := website(t, &tls.Config{
				Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusting(root),
				MaxVersion: version,
			})
			cfg := &tls.Config{RootCAs: trusting(root), ServerName: "tunnel.example"}
			d := carrier.Dialer{URL: parseURL(t, srv.URL), TLS: cfg}
			_, _, err := d.Dial(t.Context(), nil)
			if !errors.Is(err, syscall.ECONNRESET) { // which may overtake the alert
				phaseOf(t, err, carrier.PhaseTLS)
			}

			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			_, _, err = d.Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseUpgrade)
		})
	}
}

// Neither end speaks a cipher suite with CBC in TLS 1.2.
func TestHardenTLS(t *testing.T) {
	cert := issue(t, x509.Certificate{DNSNames: []string{"tunnel.example"}}, nil)
	speak := func(server, client *tls.Config) error {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		ended := make(chan error, 1)
		go func() { ended <- tls.Server(there, server).Handshake(); there.Close() }()
		return errors.Join(tls.Client(here, client).Handshake(), <-ended)
	}
	offered := 0
	for _, suite := range tls.CipherSuites() {
		if !slices.Contains(suite.SupportedVersions, tls.VersionTLS12) || !strings.Contains(suite.Name, "_ECDSA_") {
			continue
		}
		offered++
		plain := func() (server, client *tls.Config) {
			return &tls.Config{Certificates: []tls.Certificate{*cert}, MaxVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
				&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		}
		want := !strings.Contains(suite.Name, "_CBC_")
		server, client := plain()
		client.CipherSuites = []uint16{suite.ID}
		if err := speak(carrier.HardenTLS(server), client); (err == nil) != want {
			t.Errorf("a server: %s: %v, want it spoken: %v", suite.Name, err, want)
		}
		server, client = plain()
		server.CipherSuites = []uint16{suite.ID}
		if err := speak(server, carrier.HardenTLS(client)); (err == nil) != want {
			t.Errorf("a client: %s: %v, want it spoken: %v", suite.Name, err, want)
		}
	}
	if offered < 5 {
		t.Errorf("only %d suites are tried", offered)
	}
}
