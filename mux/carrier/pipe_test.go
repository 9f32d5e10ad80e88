package carrier_test

import (
	"testing"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

// A carrier over an HTTP pipe moves messages of all sizes both ways.
func TestPipeMessages(t *testing.T) {
	for name, cfg := range map[string]carriertest.Config{
		"memory":   {HTTP: true},
		"loopback": {HTTP: true, TCP: true},
		"TLS":      {HTTP: true, TCP: true, TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := carriertest.Pair(t, cfg)
			if client.Mode() != carrier.ModeHTTP || server.Mode() != carrier.ModeHTTP {
				t.Errorf("modes %q and %q", client.Mode(), server.Mode())
			}
			if client.Secure() != cfg.TLS || server.Secure() != cfg.TLS {
				t.Errorf("secure: %v and %v", client.Secure(), server.Secure())
			}
			for _, size := range []int{0, 1, 125, 126, 4 << 10, 65535, 65536, maxMessage} {
				exchange(t, client, server, size)
				exchange(t, server, client, size)
			}
			if err := client.Close("done"); err != nil {
				t.Error(err)
			}
		})
	}
}
