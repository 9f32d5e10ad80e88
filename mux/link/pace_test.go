package link

import (
	"math"
	"testing"
	"time"
)

// acked is a message that left at one time and was acknowledged at another, both
// since the start, beside nothing else.
type acked struct {
	sent, at time.Duration
	bytes    uint64
	limited  bool // the application had no more
}

func measured(acks []acked) *pace {
	p := new(pace)
	start := time.Unix(1e9, 0)
	for _, a := range acks {
		s := sendSample{at: start.Add(a.sent), delivered: p.delivered, limited: a.limited}
		p.acknowledged(s, a.bytes, start.Add(a.at))
	}
	return p
}

// The bandwidth is the largest rate of five to ten seconds, the round trip the
// shortest, and what an idle application sends says nothing against either.
func TestPaceMeasures(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	fast, slow := acked{0, 100 * ms, 1e6, false}, acked{s, s + 500*ms, 1e6, false}
	later := func(a acked, d time.Duration) acked { a.sent += d; a.at += d; return a }
	limited := func(a acked) acked { a.limited = true; return a }
	tests := []struct {
		name string
		acks []acked
		rate float64
		rtt  time.Duration
	}{
		{"nothing", nil, 0, 0},
		{"one", []acked{fast}, 1e7, 100 * ms},
		{"fast and slow", []acked{fast, slow}, 1e7, 100 * ms},
		{"slow and fast", []acked{slow, later(fast, 2*s)}, 1e7, 100 * ms},
		{"slow after 4 s", []acked{fast, later(slow, 4*s)}, 1e7, 100 * ms},
		{"slow after 6 s", []acked{fast, later(slow, 6*s)}, 1e7, 100 * ms},
		{"slow after 6 s and 12 s", []acked{fast, later(slow, 6*s), later(slow, 12*s)}, 2e6, 500 * ms},
		{"limited first", []acked{limited(fast)}, 0, 100 * ms},
		{"limited and slow after 6 s and 12 s", []acked{fast, limited(later(slow, 6*s)), limited(later(slow, 12*s))}, 0, 500 * ms},
		{"limited and fast", []acked{slow, limited(later(fast, 2*s))}, 1e7, 100 * ms},
	}
	for _, test := range tests {
		p := measured(test.acks)
		if rate, rtt := p.bandwidth(), p.roundTrip(); rate != test.rate || rtt != test.rtt {
			t.Errorf("%s: %.0f bytes/s and %v, want %.0f and %v", test.name, rate, rtt, test.rate, test.rtt)
		}
	}

	p := measured([]acked{fast})
	for i := range 3 { // parts of a message, which say nothing
		p.acknowledged(sendSample{}, 500, time.Unix(2e9+60*int64(i), 0))
	}
	if rate, rtt := p.bandwidth(), p.roundTrip(); p.delivered != 1e6+1500 || rate != 1e7 || rtt != 100*ms {
		t.Errorf("after parts of a message %d bytes, %.0f bytes/s and %v", p.delivered, rate, rtt)
	}
}

// Little waits on a slow path, and enough is under way on a fast one.
func TestPaceLimits(t *testing.T) {
	tests := []struct {
		rate           float64
		rtt            time.Duration
		unsent, socket int
		path           uint64
	}{
		{0, 0, 256 << 10, 128 << 10, math.MaxUint64},
		{10_000, time.Second, 32 << 10, 16 << 10, 32<<10 + 20_010},
		{10_000_000, 100 * time.Millisecond, 150_000, 100_000, 32<<10 + 2_010_000},
		{50_000_000, 10 * time.Millisecond, 256 << 10, 500_000, 32<<10 + 1_050_000},
		{100_000_000, 10 * time.Millisecond, 256 << 10, 0, 32<<10 + 2_100_000},
	}
	for _, test := range tests {
		p := &pace{rate: test.rate, rtt: test.rtt}
		unsent, socket, path := p.unsentLimit(), p.socketLimit(), p.pathLimit()
		if unsent != test.unsent || socket != test.socket || path != test.path {
			t.Errorf("%.0f bytes/s, %v: limits %d, %d and %d; want %d, %d and %d",
				test.rate, test.rtt, unsent, socket, path, test.unsent, test.socket, test.path)
		}
	}
}

// A receiver acknowledges half a millisecond's worth of bytes at a time, within
// bounds.
func TestAckPace(t *testing.T) {
	for rate, want := range map[int]uint64{1e6: 8 << 10, 1e8: 50_000, 1e9: 256 << 10} {
		now := time.Unix(1e9, 0)
		a := ackPace{at: now}
		now = now.Add(time.Second)
		a.sent(uint64(rate), now)
		a.sent(0, now.Add(time.Hour)) // says nothing new
		if a.bytes != want || a.at != now {
			t.Errorf("%d bytes/s: after %d bytes, want %d", rate, a.bytes, want)
		}
	}
}
