package carrier_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
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

// A client with a credential for a proxy in front of the server and none for the server
// has none there: what is for the proxy does not count.
func TestFrontPasswordIsNoCredential(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]carrier.Dialer{
		"a WebSocket":         {Mode: carrier.ModeWebSocket},
		"an HTTP pipe":        {Mode: carrier.ModeHTTP},
		"no token":            {Mode: carrier.ModeWebSocket, Credential: token("")},
		"a sealed WebSocket":  {Mode: carrier.ModeWebSocket, Seal: sealFor(key, nil)},
		"a sealed HTTP pipe":  {Mode: carrier.ModeHTTP, Seal: sealFor(key, nil)},
		"with a token":        {Mode: carrier.ModeWebSocket, Credential: token("secret")},
		"a token and a pipe":  {Mode: carrier.ModeHTTP, Credential: token("secret")},
		"a sealed token":      {Mode: carrier.ModeWebSocket, Credential: token("secret"), Seal: sealFor(key, nil)},
		"a pipe sealed twice": {Mode: carrier.ModeHTTP, Credential: token("secret"), Seal: sealFor(key, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			network := carriertest.NewNetwork()
			var carriers sync.WaitGroup
			t.Cleanup(carriers.Wait)
			want := ""
			if d.Credential != nil {
				want, _ = d.Credential()
			}
			serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
				Key: key,
				Authenticate: func(r *http.Request) (carrier.Client, error) {
					token, _ := carrier.BearerToken(r)
					if token != want || carrier.HasAuthorization(r) != (want != "") {
						return carrier.Client{}, fmt.Errorf("token %q, credential %t", token, carrier.HasAuthorization(r))
					}
					return carrier.Client{Identity: "somebody"}, nil
				},
				Admit: func(carrier.Request) (carrier.Admission, error) {
					return carrier.Admission{Attach: func(c *carrier.Conn) {
						carriers.Go(func() {
							_, _ = c.ReadMessage(make([]byte, 1<<10)) // until the client leaves
							_ = c.Close("")
						})
					}}, nil
				},
			}})
			d.URL, d.NetDial = &url.URL{Scheme: "ws", Host: "127.0.0.1"}, network.Dial
			d.Header = http.Header{"Authorization": {carrier.Basic("alice", "of-the-front")}}
			if err := dialed(t, &d); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoCredential(t *testing.T) {
	for _, tt := range []struct {
		own []string
		has bool
	}{
		{nil, true}, {[]string{"none"}, false}, {[]string{""}, true}, {[]string{"None"}, true}, {[]string{"none "}, true},
		{[]string{"none", "none"}, true}, {[]string{"none", "Bearer x"}, true},
	} {
		r := &http.Request{Header: http.Header{"Authorization": {"Bearer x"}, "Culvert-Authorization": tt.own}}
		if got := carrier.HasAuthorization(r); got != tt.has {
			t.Errorf("%q: %t", tt.own, got)
		}
		if _, ok := carrier.BearerToken(r); ok != (tt.own == nil) {
			t.Errorf("%q: a token was read: %t", tt.own, ok)
		}
	}
}
