package carrier_test

import (
	"fmt"
	"runtime"
	"testing"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

// OnIdle's function is called when the reader is about to wait, and not while it
// could still read something.
func TestIdle(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, way := range []string{"up", "down"} {
			t.Run(fmt.Sprintf("tls=%t,%s", secure, way), func(t *testing.T) {
				from, to := carriertest.Pair(t, carriertest.Config{TCP: true, TLS: secure})
				if way == "down" {
					from, to = to, from
				}
				idle := 0
				to.OnIdle(func() {
					idle++
					if err := send(from, []byte("at last")); err != nil {
						t.Error(err)
					}
				})
				buf := make([]byte, maxMessage)
				for range 3 {
					idle = 0
					sizes := []int{10, 20_000, 0, 5000, 10, 10}
					if err := send(from, messages(sizes...)...); err != nil {
						t.Fatal(err)
					}
					for !carrier.Arrived(from, to) {
						runtime.Gosched()
					}
					for i, size := range sizes {
						if n, err := to.ReadMessage(buf); n != size || err != nil || idle != 0 {
							t.Fatalf("message %d: %d bytes, %v, idle %d times before it", i, n, err, idle)
						}
					}
					if n, err := to.ReadMessage(buf); string(buf[:n]) != "at last" || err != nil || idle != 1 {
						t.Fatalf("%d bytes, %v, idle %d times before them", n, err, idle)
					}
				}
			})
		}
	}
}
