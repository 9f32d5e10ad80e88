package carrier

import (
	"testing"
	"time"
)

const second = int64(time.Second)

func TestHeart(t *testing.T) {
	tests := []struct {
		name                    string
		reading, pending, asked int64 // seconds
		received, written       int64
		inflow                  int64 // bytes
		last, due               int64
		now                     int64
		want                    verdict
		next                    time.Duration
	}{
		{name: "nothing to do", reading: 100, received: 100, written: 99, last: 95, now: 101, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "heartbeat is near", reading: 100, received: 100, written: 99, last: 81, now: 100, want: pulseWait, next: time.Second},
		{name: "heartbeat", reading: 100, received: 100, written: 99, last: 80, now: 100, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "a message may have no answer", reading: 100, pending: 100, received: 100, written: 100, last: 90, now: 104, want: pulseWait, next: time.Second},
		{name: "so a ping follows it", reading: 100, pending: 100, received: 100, written: 100, last: 90, now: 105, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "once", reading: 100, pending: 100, asked: 105, received: 100, written: 105, last: 105, now: 106, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "nearly dead", reading: 100, pending: 100, asked: 105, received: 100, written: 105, last: 105, now: 109, want: pulseWait, next: time.Second},
		{name: "dead", reading: 100, pending: 100, asked: 105, received: 100, written: 105, last: 105, now: 110, want: pulseDead},
		{name: "not read for long", reading: 109, pending: 100, asked: 105, received: 100, written: 105, last: 105, now: 118, want: pulseWait, next: time.Second},
		{name: "read for long enough", reading: 109, pending: 100, asked: 105, received: 100, written: 105, last: 105, now: 119, want: pulseDead},
		{name: "nobody reads", pending: 100, asked: 149, received: 100, written: 149, last: 149, now: 150, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "nobody reads, sign of life", pending: 100, asked: 147, received: 100, written: 147, last: 147, now: 150, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "bytes arrive, nothing written since", reading: 110, received: 110, inflow: 1000, written: 107, last: 107, now: 110, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "bytes arrive, something written just now", reading: 110, received: 110, inflow: 1000, written: 109, last: 107, now: 110, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "pong arrived", reading: 110, received: 110, inflow: 131, written: 107, last: 107, now: 110, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "process was stopped", reading: 100, pending: 100, received: 100, written: 100, last: 100, due: 102, now: 500, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "process was stopped, a ping is under way", reading: 100, pending: 100, asked: 105, received: 100, written: 105, last: 495, due: 107, now: 500, want: pulseWait, next: 2500 * time.Millisecond},
		{name: "the ping was late, and has time", reading: 100, pending: 100, asked: 108, received: 100, written: 108, last: 108, now: 111, want: pulseWait, next: 2 * time.Second},
		{name: "the pulse began after the message", reading: 100, pending: 100, received: 100, written: 100, last: 101, now: 105, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "however late, a ping comes before the end", reading: 100, pending: 100, received: 100, written: 100, last: 101, now: 115, want: pulsePing, next: 2500 * time.Millisecond},
		{name: "a little late", reading: 100, pending: 100, asked: 105, received: 100, written: 105, last: 105, due: 110, now: 111, want: pulseDead},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := newVitals()
			v.reading.Store(tt.reading * second)
			v.pending.Store(tt.pending * second)
			v.asked.Store(tt.asked * second)
			v.received.Store(tt.received * second)
			v.written.Store(tt.written * second)
			v.inflow.Store(tt.inflow)
			h := heart{
				vitals:   v,
				interval: int64(defaultHeartbeat),
				timeout:  int64(defaultHeartbeatTimeout),
				last:     tt.last * second,
				due:      tt.due * second,
			}
			got, next := h.check(tt.now * second)
			if got != tt.want || got != pulseDead && time.Duration(next) != tt.next {
				t.Errorf("got %d and %v, want %d and %v", got, time.Duration(next), tt.want, tt.next)
			}
		})
	}
}

// A process that was stopped for minutes waits for what has arrived meanwhile, and
// then for a whole timeout.
func TestHeartAfterStop(t *testing.T) {
	v := newVitals()
	v.reading.Store(100 * second)
	v.pending.Store(100 * second)
	h := heart{vitals: v, interval: int64(defaultHeartbeat), timeout: int64(defaultHeartbeatTimeout), last: 100 * second, due: 102 * second}
	now := 500 * second
	for {
		verdict, next := h.check(now)
		if verdict == pulseDead {
			break
		}
		if verdict == pulsePing {
			v.asked.CompareAndSwap(0, now)
		}
		now += next
	}
	if now != 510*second {
		t.Errorf("dead at %v", time.Duration(now))
	}
}

func TestBucket(t *testing.T) {
	b := bucket{tokens: pongBurst}
	now, n := int64(0), 0
	for range 10_000 { // 10 s of 1000 a second
		now += int64(time.Millisecond)
		if b.take(now) {
			n++
		}
	}
	if want := pongBurst + 10*pongsPerSecond; n < want-1 || n > want {
		t.Errorf("%d of 10000, want %d", n, want)
	}
	if b.take(now + int64(time.Hour)); b.tokens > pongBurst {
		t.Errorf("%v tokens saved up", b.tokens)
	}
}
