package program

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"culvert/config"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

func TestJudge(t *testing.T) {
	dial := func(phase carrier.Phase, err error) error {
		return fmt.Errorf("connect: %w", &carrier.DialError{Phase: phase, Addr: "h:80", Err: err})
	}
	refused := func(status int, token string) error {
		return dial(carrier.PhaseUpgrade, &carrier.RefusedError{Status: status, Token: token})
	}
	untrusted := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	listen := func(errno syscall.Errno) error {
		return fmt.Errorf("%w for -L 80:h:80: %w", tunnel.ErrListen, &net.OpError{Op: "listen", Err: errno})
	}
	tests := []struct {
		name string
		err  error
		code int
		hint string // a part of it; "" for none at all
	}{
		{"nothing", nil, 0, ""},
		{"usage", &usageError{"x", "y"}, 2, ""},
		{"problems", config.Problems{{What: "x"}}, 2, ""},
		{"the agent's own checks", fmt.Errorf("%w: x", tunnel.ErrConfig), 2, ""},
		{"dialer", dial(carrier.PhaseSetup, carrier.ErrInvalidDialer), 2, ""},

		{"plaintext", dial(carrier.PhaseSetup, carrier.ErrPlaintextCredential), 3, "--allow-plaintext"},
		{"401", refused(http.StatusUnauthorized, ""), 3, "--token-file"},
		{"403", refused(http.StatusForbidden, ""), 3, "forbids"},
		{"404", refused(http.StatusNotFound, ""), 3, "check the address, the path and the credential"},
		{"200", refused(http.StatusOK, ""), 3, "check the address, the path and the credential"},
		{"400", refused(http.StatusBadRequest, ""), 3, "check the address, the headers"},
		{"431", refused(http.StatusRequestHeaderFieldsTooLarge, ""), 3, "shorter token"},
		{"302", refused(http.StatusFound, ""), 3, "redirects"},
		{"version", refused(http.StatusBadRequest, carrier.RefusalVersion), 3, "same version"},
		{"no key to open a seal", refused(http.StatusBadRequest, carrier.RefusalSeal), 3, "--seal"},
		{"denied to listen", fmt.Errorf("%w: %w", tunnel.ErrListen, &mux.Error{Code: mux.Denied}), 3, ""},
		{"not culvert", dial(carrier.PhaseHello, carrier.ErrNotCulvert), 3, "check the address and the path"},
		{"untrusted", dial(carrier.PhaseTLS, untrusted), 3, "--tls-ca"},
		{"other name", dial(carrier.PhaseTLS, x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}), 3, "--tls-server-name"},
		{"expired", dial(carrier.PhaseTLS, x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired}), 3, "clock"},

		{"proxy without a credential", dial(carrier.PhaseProxy, &carrier.ProxyError{Status: 407}), 3, "--proxy http://USER:PASSWORD@HOST:PORT"},
		{"wrong proxy credential", dial(carrier.PhaseProxy, &carrier.ProxyError{Status: 407, Credential: true, Tried: "Basic"}), 3, "check what --proxy"},
		{"a proxy that wants Kerberos", dial(carrier.PhaseProxy, &carrier.ProxyError{Status: 407, Credential: true, Stopped: "Negotiate"}), 3, "Kerberos"},
		{"SOCKS credential", dial(carrier.PhaseProxy, &carrier.ProxyError{}), 3, "--proxy http://USER:PASSWORD@HOST:PORT"},
		{"403 from the proxy", dial(carrier.PhaseProxy, &carrier.ProxyError{Status: 403}), 3, "who runs the proxy"},
		{"no proxy", dial(carrier.PhaseProxy, carrier.ErrNotProxy), 3, "address and the scheme of the proxy"},
		{"502 from the proxy", dial(carrier.PhaseProxy, &carrier.ProxyError{Status: 502}), 1, "from the proxy"},
		{"proxy not there", dial(carrier.PhaseProxy, syscall.ECONNREFUSED), 1, "check the proxy"},
		{"proxy not known", dial(carrier.PhaseProxy, &net.DNSError{Name: "p", IsNotFound: true}), 1, "check the proxy"},
		{"a proxy by another name", dial(carrier.PhaseProxy, x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}), 3, "give the proxy by the name"},
		{"a proxy without TLS", dial(carrier.PhaseProxy, &carrier.SchemeError{Scheme: "https", Use: "http"}), 3, ""},
		{"untrusted proxy", dial(carrier.PhaseProxy, untrusted), 3, "the proxy's certificate with --tls-ca"},

		{"intercepted", dial(carrier.PhaseTLS, &carrier.CertificateError{Cert: &x509.Certificate{}, Err: untrusted}), 3, "intercepts TLS"},
		{"signed by none of --tls-ca", dial(carrier.PhaseTLS, &carrier.CertificateError{Given: true, Cert: &x509.Certificate{}, Err: untrusted}), 3, "no authority in the file of --tls-ca signed it"},
		{"ws to TLS", dial(carrier.PhaseUpgrade, &carrier.SchemeError{Scheme: "ws", Use: "wss"}), 3, ""},
		{"wss without TLS", dial(carrier.PhaseTLS, &carrier.SchemeError{Scheme: "wss", Use: "ws"}), 3, "everybody on the way"},
		{"HTTP/2 only", dial(carrier.PhaseUpgrade, carrier.ErrHTTP2Only), 3, "HTTP/1.1"},
		{"other key", dial(carrier.PhaseTLS, &carrier.PinError{Cert: &x509.Certificate{}}), 3, "--tls-pin"},

		{"alert", dial(carrier.PhaseTLS, &net.OpError{Op: "remote error", Err: io.ErrNoProgress}), 1, "--tls-cert"},
		{"429", refused(http.StatusTooManyRequests, ""), 1, "--retry-initial"},
		{"503", refused(http.StatusServiceUnavailable, ""), 1, "--retry-initial"},
		{"limit", refused(http.StatusServiceUnavailable, carrier.RefusalLimit), 1, "--retry-initial"},
		{"stopping", refused(http.StatusServiceUnavailable, carrier.RefusalStopping), 1, "--retry-initial"},
		{"connection refused", dial(carrier.PhaseConnect, syscall.ECONNREFUSED), 1, "culvert-server runs there"},
		{"no such host", dial(carrier.PhaseResolve, &net.DNSError{Name: "h", IsNotFound: true}), 1, "server's name"},
		{"time-out", dial(carrier.PhaseUpgrade, context.DeadlineExceeded), 1, "--retry-initial"},
		{"address in use", listen(syscall.EADDRINUSE), 1, "another port"},
		{"privileged port", listen(syscall.EACCES), 1, "above 1023"},
		{"anything", io.ErrUnexpectedEOF, 1, ""},
		{"second signal", errSecondSignal, 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.err != nil && Hint(tt.err) == "" {
				t.Errorf("no hint for %v", tt.err)
			}
			code, hint := judge(tt.err)
			if code != tt.code || !strings.Contains(hint, tt.hint) || (tt.hint == "") != (hint == "") {
				t.Errorf("judge(%v) = %d, %q, want %d, %q", tt.err, code, hint, tt.code, tt.hint)
			}
			if tt.code != exitUsage && tt.code != exitOK {
				if again, _ := judge(errors.Join(tt.err, errors.New("more"))); again != tt.code {
					t.Errorf("wrapped, it is %d", again)
				}
			}
		})
	}
}

// Several servers are told one by one, and are worth another try if one of them is.
func TestReportServers(t *testing.T) {
	dial := func(addr string, err error) error {
		return &carrier.DialError{Phase: carrier.PhaseConnect, Addr: addr, Err: err}
	}
	tests := []struct {
		errs  []error
		code  int
		hints []string // of each line
	}{
		{[]error{dial("a:1", carrier.ErrUnauthorized), dial("b:2", carrier.ErrNotCulvert)}, 3, []string{"--token-file", "the path"}},
		{[]error{dial("a:1", carrier.ErrUnauthorized), dial("b:2", syscall.ECONNREFUSED)}, 1, []string{"--token-file", "--retry-initial"}},
		{[]error{dial("a:1", syscall.ECONNREFUSED), dial("b:2", carrier.ErrUnauthorized)}, 1, []string{"--retry-initial", "--token-file"}},
	}
	for _, tt := range tests {
		var stderr strings.Builder
		if code := (Program{Name: "p"}).report(&stderr, fmt.Errorf("x: %w", &tunnel.ServersError{Errs: tt.errs})); code != tt.code {
			t.Errorf("%v: exit code %d, want %d", tt.errs, code, tt.code)
		}
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		if len(lines) != len(tt.errs) {
			t.Fatalf("stderr:\n%s", &stderr)
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, "p: "+tt.errs[i].Error()+"; ") || !strings.Contains(line, tt.hints[i]) {
				t.Errorf("%q is no line for %v with %q", line, tt.errs[i], tt.hints[i])
			}
		}
	}
}
