package carrier_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"culvert/mux/carrier"
)

func TestPermanent(t *testing.T) {
	refused := func(status int, token string) error {
		return &carrier.RefusedError{Status: status, Token: token}
	}
	tests := []struct {
		err  error
		want bool
	}{
		{nil, false},
		{io.EOF, false},
		{net.ErrClosed, false},
		{context.DeadlineExceeded, false},
		{context.Canceled, false},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, false},
		{&net.DNSError{IsNotFound: true}, false},
		{tls.AlertError(40), false},

		{carrier.ErrInvalidDialer, true},
		{carrier.ErrPlaintextCredential, true},
		{carrier.ErrUnauthorized, true},
		{carrier.ErrNotCulvert, true},
		{carrier.ErrNotProxy, true},
		{&carrier.ProxyError{Status: 403}, true},
		{&carrier.ProxyError{Status: 407}, true},
		{&carrier.ProxyError{Status: 408}, false},
		{&carrier.ProxyError{Status: 503}, false},
		{&carrier.ProxyError{Reply: 2}, true},
		{&carrier.ProxyError{Reply: 4}, false},
		{&carrier.ProxyError{}, true},
		{carrier.ErrHeartbeat, false},
		{&carrier.CloseError{Code: 1001}, false},

		{&tls.CertificateVerificationError{Err: errors.New("x")}, true},
		{x509.UnknownAuthorityError{}, true},
		{x509.HostnameError{Certificate: &x509.Certificate{}}, true},
		{x509.CertificateInvalidError{Reason: x509.Expired}, true},

		{refused(200, ""), true},
		{refused(302, ""), true},
		{refused(400, ""), true},
		{refused(401, ""), true},
		{refused(403, ""), true},
		{refused(404, ""), true},
		{refused(407, ""), true},
		{refused(408, ""), false},
		{refused(425, ""), false},
		{refused(426, ""), true},
		{refused(429, ""), false},
		{refused(500, ""), false},
		{refused(502, ""), false},
		{refused(503, ""), false},
		{refused(504, ""), false},
		{refused(511, ""), false},

		{refused(410, carrier.RefusalGone), false},
		{refused(503, carrier.RefusalLimit), false},
		{refused(403, carrier.RefusalLimit), false},
		{refused(503, carrier.RefusalStopping), false},
		{refused(400, carrier.RefusalMalformed), true},
		{refused(400, carrier.RefusalVersion), true},
		{refused(400, "a token of the future"), false},
	}
	for _, tt := range tests {
		if got := carrier.Permanent(tt.err); got != tt.want {
			t.Errorf("Permanent(%v) = %t, want %t", tt.err, got, tt.want)
		}
		if tt.err == nil {
			continue
		}
		wrapped := fmt.Errorf("attempt 1: %w", &carrier.DialError{Phase: carrier.PhaseUpgrade, Addr: "a:1", Err: tt.err})
		if got := carrier.Permanent(wrapped); got != tt.want {
			t.Errorf("Permanent(%v) = %t, want %t", wrapped, got, tt.want)
		}
	}
}

func TestErrorsQuoteThePeer(t *testing.T) {
	const nasty = "a\n\x1b[31mb"
	for _, err := range []error{
		&carrier.RefusedError{Status: 404, Token: nasty, Server: nasty, Body: nasty},
		&carrier.RefusedError{Status: 302, Location: nasty},
		&carrier.ProxyError{Status: 407, Server: nasty, Schemes: []string{nasty}},
		&carrier.CloseError{Code: 1000, Reason: nasty},
	} {
		if strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("unquoted: %q", err.Error())
		}
	}
}
