package carrier_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

// A certificate has addresses without zones: a zone says which interface of this machine
// leads there.
func TestCertificateOfAddressWithZone(t *testing.T) {
	cert, pool := carriertest.Certificate(t)
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(culvert)}, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}
	srv.StartTLS()
	defer srv.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	d := &carrier.Dialer{URL: parseURL(t, "wss://[::1%25"+interfaces[0].Name+"]:"+port), TLS: &tls.Config{RootCAs: pool}}
	if err := dialed(t, d); err != nil {
		t.Error(err)
	}
	d.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
	if err := dialed(t, d); err == nil {
		t.Error("the certificate is not verified")
	}
}
