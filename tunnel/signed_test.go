package tunnel

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"culvert/auth"
	"culvert/mux/carrier"
)

// newIssuer returns a function that signs tokens of the issuer "i", and its keys.
func newIssuer(t *testing.T) (sign func(subject string, end time.Time) string, keys auth.KeySet) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keys, err = auth.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return func(subject string, end time.Time) string {
		claims, err := json.Marshal(map[string]any{"iss": "i", "aud": "culvert", "sub": subject, "exp": end.Unix()})
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}, keys
}

// staff is a directory in which everybody with a token of the issuer "i" is "staff".
func staff(t *testing.T, keys auth.KeySource) *auth.Directory {
	t.Helper()
	d, err := auth.NewDirectory(auth.DirectoryConfig{
		Identities: []auth.Identity{{Name: "staff", Claims: []auth.Claims{{"sub": {"*"}}}, Policy: auth.Everything()}},
		Issuers:    []auth.Issuer{{Issuer: "i", Audience: "culvert", Keys: keys}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// issuerDown is an issuer whose keys cannot be asked for now.
type issuerDown struct{ auth.KeySet }

func (issuerDown) Lookup(context.Context, string) (auth.KeySet, error) {
	return nil, fmt.Errorf("%w: connection refused", auth.ErrUnavailable)
}

// TestIssuerDown checks that a token that cannot be checked now is not refused for good,
// and does not count as a failure of its address.
func TestIssuerDown(t *testing.T) {
	sign, keys := newIssuer(t)
	guard := auth.NewGuard(staff(t, issuerDown{}))
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	authorization := "Bearer " + sign("alice", time.Now().Add(time.Hour))
	ask := func() *http.Response {
		t.Helper()
		conn := connect(t, at)
		defer conn.Close()
		return upgradeOn(t, conn, authorization)
	}
	for range 20 {
		if resp := ask(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "10" || resp.Header.Get("WWW-Authenticate") != "" {
			t.Fatalf("%s, %v", resp.Status, resp.Header)
		}
	}
	guard.Use(staff(t, keys))
	conn := connect(t, at)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	began := time.Now()
	if resp := upgradeOn(t, conn, "Bearer "+sign("alice", time.Now().Add(-time.Hour))); resp.StatusCode != 401 {
		t.Errorf("a token that has ended: %s", resp.Status)
	}
	if held := time.Since(began); held >= time.Second {
		t.Errorf("the answer was held back for %v, as after many failures", held)
	}
}

// TestClientWaitsForIssuer checks that a client whose token cannot be checked when it starts
// waits as long as the server asks and does not end, whatever its carriers are.
func TestClientWaitsForIssuer(t *testing.T) {
	sign, _ := newIssuer(t)
	key := newKey(t)
	token := sign("alice", time.Now().Add(time.Hour))
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		for name, edit := range map[string]func(*ClientConfig){"plain": func(*ClientConfig) {}, "sealed": sealing(key, nil)} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				_, at := startServer(t, func(c *ServerConfig) { c.Key, c.Guard = key, auth.NewGuard(staff(t, issuerDown{})) })
				client := startClient(t, at, both(edit, func(c *ClientConfig) {
					c.Carrier = mode
					c.Credential = func() (string, error) { return token, nil }
				}))
				client.find(t, `msg="connect failed"`, "503 Service Unavailable", "next_attempt=10s")
			})
		}
	}
}

// TestSignedTokenEnds checks that a carrier does not outlive the signed token that it
// came with, and that its streams go on over the next one with a fresh token of the
// same subject, but not with one of another.
func TestSignedTokenEnds(t *testing.T) {
	sign, keys := newIssuer(t)
	d := staff(t, keys)
	for _, tt := range []struct {
		next    string // subject
		resumes bool
	}{{"alice", true}, {"bob", false}} {
		t.Run("then "+tt.next, func(t *testing.T) {
			t.Parallel()
			server, address := startServer(t, func(c *ServerConfig) { c.Guard = auth.NewGuard(d) })
			addr, conns := target(t)
			var token atomic.Value
			// The clocks may be 30 s apart, so this one is good for some 2 s more.
			token.Store(sign("alice", time.Now().Add(-28*time.Second)))
			client := startClient(t, address, func(c *ClientConfig) {
				local(addr)(c)
				c.Credential = func() (string, error) { return token.Load().(string), nil }
			})
			app := connect(t, client.listening(t, "local"))
			peer := within(t, conns, "connection to the target")
			greet(t, app, peer)
			server.find(t, `msg="session opened"`, "client=staff/alice")

			token.Store(sign(tt.next, time.Now().Add(time.Hour)))
			server.find(t, `msg="credential ended"`, "client=staff/alice", `credential="signed token of i"`, `reason="credential has expired"`)
			if tt.resumes {
				greet(t, app, peer)
				server.find(t, `msg="session resumed"`, "client=staff/alice")
				return
			}
			if _, err := app.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("the stream of another subject ended with %v", err)
			}
			server.find(t, `msg="session opened"`, "client=staff/bob")
		})
	}
}
