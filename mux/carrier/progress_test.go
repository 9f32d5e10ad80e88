package carrier_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/test/bubble"
)

// A dial that takes longer than 3 s says what it is waiting for, each thing once.
func TestDialSaysWhatItWaitsFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		proxy   string
		secure  bool
		connect time.Duration // after which there is a connection, to somebody who says nothing
		told    []string
	}{
		{"no connection", "", false, time.Hour, []string{"3s a TCP connection to server.invalid:80"}},
		{"no answer", "", false, 0, []string{"3s the answer of server.invalid:80 to an HTTP request"}},
		{"no TLS", "", true, 0, []string{"3s the TLS handshake with server.invalid:443"}},
		{"first the one, then the other", "", false, 4 * time.Second, []string{
			"3s a TCP connection to server.invalid:80", "6s the answer of server.invalid:80 to an HTTP request",
		}},
		{"a proxy", "http://proxy.invalid:3128", true, 0, []string{"3s the answer of the proxy proxy.invalid:3128 to CONNECT server.invalid:443"}},
		{"a proxy without a connection", "http://proxy.invalid:3128", true, time.Hour, []string{"3s a TCP connection to the proxy proxy.invalid:3128"}},
		{"a proxy's TLS", "https://proxy.invalid", true, 0, []string{"3s the TLS handshake with the proxy proxy.invalid:443"}},
		{"a SOCKS proxy", "socks5://proxy.invalid", true, 0, []string{"3s the answer of the SOCKS proxy proxy.invalid:1080"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var told []string
				d := &carrier.Dialer{
					URL: &url.URL{Scheme: "ws", Host: "server.invalid"},
					NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) {
						select {
						case <-time.After(tt.connect):
						case <-ctx.Done():
							return nil, ctx.Err()
						}
						near, far := net.Pipe()
						go func() { _, _ = io.Copy(io.Discard, far) }() // until near is closed
						return near, nil
					},
					Slow: func(waitingFor string, after time.Duration) { told = append(told, fmt.Sprint(after, " ", waitingFor)) },
				}
				if tt.secure {
					d.URL.Scheme = "wss"
				}
				if tt.proxy != "" {
					u, err := url.Parse(tt.proxy)
					if err != nil {
						t.Fatal(err)
					}
					d.Proxy = through(u)
				}
				if _, _, err := d.Dial(t.Context(), nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if !slices.Equal(told, tt.told) {
					t.Errorf("told %q, want %q", told, tt.told)
				}
			})
		})
	}
}

// A credential that takes long is told like everything else, and a dial that does not
// take long tells nothing.
func TestDialWaitsForCredential(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for took, want := range map[time.Duration][]string{2 * time.Second: nil, 4 * time.Second: {"the credential"}} {
			var told []string
			d := &carrier.Dialer{
				URL: &url.URL{Scheme: "wss", Host: "server.invalid"},
				Credential: func() (string, error) {
					time.Sleep(took)
					return "", errors.New("none")
				},
				Slow: func(waitingFor string, _ time.Duration) { told = append(told, waitingFor) },
			}
			if _, _, err := d.Dial(t.Context(), nil); err == nil {
				t.Error("dialled")
			}
			time.Sleep(time.Minute)
			if !slices.Equal(told, want) {
				t.Errorf("after %v: told %q, want %q", took, told, want)
			}
		}
	})
}
