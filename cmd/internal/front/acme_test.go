package front_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"culvert/cmd/internal/front"
)

// silentAuthority is one that never answers, until the test ends. asked has an element
// for each time that it is asked.
func silentAuthority(t *testing.T) (a *front.ACME, asked chan struct{}) {
	t.Helper()
	asked, release := make(chan struct{}, 100), make(chan struct{})
	authority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		http.Error(w, "no", http.StatusForbidden)
	}))
	a, err := front.NewACME(front.ACMEConfig{
		Domains: []string{"tunnel.example"}, Cache: t.TempDir(), Directory: authority.URL, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(release)
		a.Close()
		authority.Close()
	})
	return a, asked
}

// A handshake that waits for the authority ends with the server.
func TestACMEHandshakeEnds(t *testing.T) {
	a, asked := silentAuthority(t)
	cfg := new(tls.Config)
	a.Configure(cfg)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go func() { _ = tls.Client(client, &tls.Config{ServerName: "tunnel.example"}).HandshakeContext(ctx) }()
		go func() { ended <- tls.Server(server, cfg).HandshakeContext(ctx) }()
	}
	<-asked
	stop()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("there is a certificate")
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on waiting")
		}
	}
	if len(asked) > 0 {
		t.Error("the authority was asked twice")
	}
}
