package carrier_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"culvert/mux/carrier"
)

// A wrong password is shown once to a proxy in front of the server: more in a row lock
// accounts.
func TestFrontPasswordIsTriedOnce(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		t.Run(string(mode), func(t *testing.T) {
			var tried atomic.Int32
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Culvert-Authorization") != "Bearer private" {
					t.Errorf("the credential is %q", r.Header.Get("Culvert-Authorization"))
				}
				tried.Add(1)
				w.Header().Set("WWW-Authenticate", `Basic realm="front"`)
				w.WriteHeader(http.StatusUnauthorized)
			}))
			defer front.Close()
			d := &carrier.Dialer{
				URL: parseURL(t, front.URL), Mode: mode, Credential: token("private"),
				SecretHeader: func() (http.Header, error) {
					return http.Header{"Authorization": {carrier.Basic("alice", "wrong-password")}}, nil
				},
			}
			err := dialed(t, d)
			if !errors.Is(err, carrier.ErrFrontUnauthorized) || errors.Is(err, carrier.ErrUnauthorized) || !carrier.Permanent(err) {
				t.Errorf("dial: %v", err)
			}
			if strings.Contains(err.Error(), "wrong-password") || strings.Contains(err.Error(), "private") {
				t.Error("a secret is shown")
			}
			if n := tried.Load(); n != 1 {
				t.Errorf("the password was shown %d times", n)
			}
		})
	}
}
