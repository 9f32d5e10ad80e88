package test

import (
	"encoding/binary"
	"testing"
	"time"

	"culvert/test/netfault"
)

// A download over a path with a round trip of 80 ms does not fall silent when its carrier is replaced, and
// nothing of it is sent again.
func TestReplacementIsNotFelt(t *testing.T) {
	t.Parallel()
	const delay = 40 * time.Millisecond
	const rate = 8 << 20 // bytes a second
	size := int64(10 * rate)
	verdicts := make(chan error, 1)
	target := serve(t, exchanger(verdicts))
	r := newRig(t, config{client: append(local(target), "--max-carrier-age", "2s", "--log-level", "debug")})
	r.relay.Delay(delay)
	r.relay.Limit(rate)
	r.client.Find(patience, "carrier replaced") // the first carrier has no delay
	r.relay.Cut()
	r.client.Find(patience, "session resumed")
	conn := connect(t, r.forward(target))
	before := r.client.Count("carrier replaced")
	carried := r.relay.Bytes(netfault.Down)
	if err := binary.Write(conn, binary.LittleEndian, request{Seed: 5, Down: size}); err != nil {
		t.Fatal(err)
	}
	var last time.Time
	var longest time.Duration
	silences := 0 // longer than two round trips
	buf := make([]byte, 64<<10)
	conn.SetDeadline(time.Now().Add(4 * patience))
	for got := int64(0); got < size; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		now := time.Now()
		if !last.IsZero() {
			silence := now.Sub(last)
			longest = max(longest, silence)
			if silence > 4*delay {
				silences++
			}
		}
		last = now
		got += int64(n)
	}
	conn.Close()
	replaced := r.client.Count("carrier replaced") - before
	again := r.relay.Bytes(netfault.Down) - carried - size
	t.Logf("%d replacements under a download; longest silence %v, %d beyond %v; %d bytes more than its own were carried (%.2f %%)",
		replaced, longest.Round(time.Millisecond), silences, 4*delay, again, 100*float64(again)/float64(size))
	if replaced < 3 {
		t.Errorf("%d replacements", replaced)
	}
	// A machine that is busy with something else makes one now and then.
	if silences > replaced/3 {
		t.Errorf("%d silences beyond %v in %d replacements", silences, 4*delay, replaced)
	}
	if again > size/50 {
		t.Errorf("%d bytes were sent again", again)
	}
}
