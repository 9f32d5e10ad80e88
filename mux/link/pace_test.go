package link

import (
	"testing"
	"time"
)

// acked is a message that was sent at one time and acknowledged at another, both
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
		s := p.sending(start.Add(a.sent), true)
		s.limited = a.limited
		p.acknowledged(s, a.bytes, start.Add(a.at))
	}
	return p
}

// The bandwidth is the largest rate of five to ten seconds, the round trip the
// shortest. What is sent when nothing is left says nothing against either, unless
// it shows that the path has a queue.
func TestPaceMeasures(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	fast, slow := acked{0, 100 * ms, 1e6, false}, acked{s, s + 500*ms, 1e6, false}
	slower := slow
	slower.bytes = 9e5
	later := func(a acked, d time.Duration) acked { a.sent += d; a.at += d; return a }
	little := func(a acked, d time.Duration) acked { a = later(a, d); a.bytes = minQueued - 1; return a }
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
		{"limited after 6 s and 12 s", []acked{fast, limited(later(slow, 6*s)), limited(later(slow, 12*s))}, 2e6, 500 * ms},
		{"limited and little after 6 s and 12 s", []acked{fast, limited(little(slow, 6*s)), limited(little(slow, 12*s))}, 0, 500 * ms},
		{"limited and no queue after 7 s and 13 s", []acked{slow, limited(later(slower, 7*s)), limited(later(slower, 13*s))}, 0, 500 * ms},
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

// A rate is what was delivered over the time of its sending or its delivery,
// whichever is longer, and a pause before is none of it.
func TestPaceIntervals(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1e9, 0).Add(d) }
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		run  func(p *pace)
		want float64
	}{
		"delivered together": {func(p *pace) {
			a, b := p.sending(at(0), true), p.sending(at(50*ms), false)
			p.acknowledged(a, 1e6, at(100*ms))
			p.acknowledged(b, 1e6, at(100*ms))
		}, 2e7},
		"sent slowly": {func(p *pace) {
			a := p.sending(at(0), true)
			p.acknowledged(a, 1e6, at(490*ms))
			b := p.sending(at(500*ms), false)
			p.acknowledged(b, 2e6, at(510*ms))
		}, 4e6},
		"after a pause": {func(p *pace) {
			a := p.sending(at(0), true)
			p.acknowledged(a, 1000, at(100*ms))
			b := p.sending(at(2000*ms), true)
			p.acknowledged(b, 1e6, at(2100*ms))
		}, 1e7},
	} {
		p := new(pace)
		tt.run(p)
		if p.bandwidth() != tt.want {
			t.Errorf("%s: %.0f bytes/s, want %.0f", name, p.bandwidth(), tt.want)
		}
	}
}

// The round trip that drains aim at grows slowly, since it may be a queue's.
func TestPaceBestRoundTrip(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	acks := []acked{{0, 100 * ms, 1e6, false}}
	for i, want := range []time.Duration{0, 100 * ms, 125 * ms, 156250 * time.Microsecond, 180 * ms, 180 * ms} {
		if got := measured(acks).rttBest; got != want {
			t.Errorf("%v in window %d, want %v", got, i, want)
		}
		from := time.Duration(i+1) * 6 * s
		acks = append(acks, acked{from, from + 180*ms, 1e6, false})
	}
}

// Little waits on a slow path, and enough is under way on a fast one.
func TestPaceLimits(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		p                       pace
		unsent, socket, message int
		path                    uint64
	}{
		{pace{}, 256 << 10, 128 << 10, 16 << 10, 64 << 10},
		{pace{rate: 1e4, rtt: 1000 * ms}, 16 << 10, 16 << 10, 8 << 10, 16<<10 + 20_000},
		{pace{rate: 1e7, rtt: 100 * ms}, 20_000, 100_000, 10_000, 2_000_000 + 31_250},
		{pace{rate: 1e7, rtt: 100 * ms, draining: true}, 20_000, 100_000, 10_000, 2_000_000 + 31_250},
		{pace{rate: 1e7, rtt: 100 * ms, pathFull: true}, 20_000, 100_000, 10_000, 1_000_000 + 31_250},
		{pace{rate: 1e7, rtt: 100 * ms, pathFull: true, draining: true, rttBest: 200 * ms}, 20_000, 100_000, 10_000, 850_000},
		{pace{rate: 1e7, rtt: 100 * ms, pathFull: true, draining: true, rttBest: 50 * ms}, 20_000, 100_000, 10_000, 425_000},
		{pace{rate: 1e7, rtt: ms, pathFull: true, draining: true, rttBest: ms}, 20_000, 100_000, 10_000, 16 << 10},
		{pace{rate: 5e7, rtt: 8 * ms}, 100_000, 500_000, 50_000, 800_000 + 16<<10},
		{pace{rate: 1e8, rtt: 8 * ms, pathFull: true}, 200_000, 0, 100_000, 800_000 + 25_000},
		{pace{rate: 1e8, rtt: ms, pathFull: true}, 200_000, 0, 100_000, 100_000 + 25_000},
		{pace{rate: 1e9, rtt: ms, pathFull: true}, 256 << 10, 0, 128 << 10, 1_000_000 + 250_000},
	} {
		p := tt.p
		if unsent, socket, message, path := p.unsentLimit(), p.socketLimit(), p.message(), p.pathLimit(); unsent != tt.unsent ||
			socket != tt.socket || message != tt.message || path != tt.path {
			t.Errorf("%+v:\nlimits %d, %d, %d and %d, want %d, %d, %d and %d",
				p, unsent, socket, message, path, tt.unsent, tt.socket, tt.message, tt.path)
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
