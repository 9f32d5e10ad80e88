package test

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"
)

// An echo beside a bulk transfer on a line of 10 Mbit/s, whose relay would gladly buffer megabytes: bytes
// that wait below the mux, or in the path, make everybody wait. It takes seconds where they are not
// bounded, and 10 ms where there is no bulk transfer.
func TestEchoBesideBulkOnASlowLine(t *testing.T) {
	const rate, delay, limit = 10_000_000 / 8, 5 * time.Millisecond, 250 * time.Millisecond
	for _, c := range []struct {
		name, carrier string
		bulk          request
	}{
		{"download", "websocket", request{Seed: 1, Down: 1 << 40}},
		{"upload", "websocket", request{Seed: 1, Up: 1 << 40}},
		{"download over HTTP", "http", request{Seed: 1, Down: 1 << 40}},
		{"upload over HTTP", "http", request{Seed: 1, Up: 1 << 40}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			name, bulk := c.name, c.bulk
			verdicts := make(chan error, 1)
			big, small := serve(t, exchanger(verdicts)), serve(t, echo)
			r := newRig(t, config{client: append(append(local(big), local(small)...), "--carrier", c.carrier)})
			interactive := connect(t, r.forward(small))
			mustPing(t, interactive, "warm")
			r.relay.Limit(rate)
			r.relay.Delay(delay)
			r.relay.Cut() // the delay holds for new connections

			transfer := connect(t, r.forward(big))
			if err := binary.Write(transfer, binary.LittleEndian, bulk); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = bothWays(transfer, bulk.Seed, bulk.Up, bulk.Seed+1, bulk.Down)
			}()
			before := r.relay.Bytes(0) + r.relay.Bytes(1)
			waitFor(t, "the transfer to fill the line", func() bool {
				return r.relay.Bytes(0)+r.relay.Bytes(1)-before > 2*rate
			})
			times := echoes(t, interactive, 40)
			p50, p90 := times[len(times)/2], times[len(times)*9/10]
			t.Logf("echo beside a %s: p50 %v, p90 %v", name, p50, p90)
			if p50 > limit {
				t.Errorf("echo beside a %s takes %v (p50), want %v at most", name, p50, limit)
			}
			reset(transfer)
			<-ended
		})
	}
}

// echoes is how long n echoes through one connection took, sorted.
func echoes(t *testing.T, conn net.Conn, n int) []time.Duration {
	t.Helper()
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = mustPing(t, conn, "are you there?")
	}
	slices.Sort(all)
	return all
}
