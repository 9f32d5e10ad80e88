package tunnel

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"culvert/auth"
)

// TestSignedTokenEnds checks that a carrier does not outlive the signed token that it
// came with, and that its streams go on over the next one with a fresh token of the
// same subject, but not with one of another.
func TestSignedTokenEnds(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(subject string, end time.Time) string {
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
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := auth.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{
		Identities: []auth.Identity{{Name: "staff", Claims: []auth.Claims{{"sub": {"*"}}}, Policy: auth.Everything()}},
		Issuers:    []auth.Issuer{{Issuer: "i", Audience: "culvert", Keys: keys}},
	})
	if err != nil {
		t.Fatal(err)
	}
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
