//go:build !race

package carrier_test

import (
	"strings"
	"testing"

	"culvert/mux/carrier/carriertest"
)

// The race detector allocates, so it does not build this.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, way := range []string{"up", "down", "sealed up", "sealed down"} {
		client, server := carriertest.Pair(t, carriertest.Config{TCP: true, Sealed: strings.HasPrefix(way, "sealed")})
		from, to := client, server
		if strings.HasSuffix(way, "down") {
			from, to = server, client
		}
		message, buf := make([]byte, 60<<10), make([]byte, maxMessage)
		allocs := testing.AllocsPerRun(200, func() {
			if err := send(from, message); err != nil {
				t.Fatal(err)
			}
			if _, err := to.ReadMessage(buf); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations a message", way, allocs)
		}
	}
}
