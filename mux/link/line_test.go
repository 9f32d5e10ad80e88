package link

import (
	"testing"
	"time"
)

// line is a path of a rate and a round trip, with a queue without end before it,
// and a sender that always has something to send.
type line struct {
	rate      float64
	roundTrip time.Duration

	p       pace
	now     time.Time
	free    time.Time // when the line has carried what it was given
	under   []flight
	acked   uint64
	blocked bool   // something was left to send
	waiting uint64 // most bytes in the queue when something was sent, since the last run began
}

type flight struct {
	sample sendSample
	bytes  uint64
	acked  time.Time
}

// run lets d pass and returns the bytes acknowledged meanwhile.
func (l *line) run(d time.Duration) uint64 {
	end, before := l.now.Add(d), l.acked
	l.waiting = 0
	for l.now.Before(end) {
		for l.flying() < l.p.pathLimit() {
			n := uint64(l.p.message())
			if queue := max(0, l.free.Sub(l.now.Add(l.roundTrip/2))); queue > 0 {
				l.waiting = max(l.waiting, uint64(queue.Seconds()*l.rate))
			}
			s := l.p.sending(l.now, len(l.under) == 0)
			s.limited = !l.blocked
			if arrives := l.now.Add(l.roundTrip / 2); l.free.Before(arrives) {
				l.free = arrives
			}
			l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			l.under = append(l.under, flight{s, n, l.free.Add(l.roundTrip / 2)})
		}
		l.blocked = true
		f := l.under[0]
		l.under = l.under[1:]
		l.now = f.acked
		l.acked += f.bytes
		l.p.acknowledged(f.sample, f.bytes, l.now)
	}
	return l.acked - before
}

func (l *line) flying() (n uint64) {
	for _, f := range l.under {
		n += f.bytes
	}
	return n
}

// A path is filled, with little in its queue, for as long as it takes.
func TestPace(t *testing.T) {
	for name, l := range map[string]*line{
		"10 Mbit/s":           {rate: 1.25e6, roundTrip: 200 * time.Microsecond},
		"10 Mbit/s, 50 ms":    {rate: 1.25e6, roundTrip: 50 * time.Millisecond},
		"25 MB/s, 40 ms":      {rate: 25e6, roundTrip: 40 * time.Millisecond},
		"100 MB/s, 100 ms":    {rate: 100e6, roundTrip: 100 * time.Millisecond},
		"1 GB/s, 100 µs":      {rate: 1e9, roundTrip: 100 * time.Microsecond},
		"100 MB/s in a house": {rate: 100e6, roundTrip: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			l.now = time.Unix(0, 0)
			l.run(20*l.roundTrip + 5*time.Second) // finds out
			// After a drain what is missing under way leaves at once.
			queue := uint64(2*minPath) + uint64(l.p.message()) + uint64(l.rate*(l.roundTrip*3/10+time.Millisecond).Seconds())
			for range 10 {
				const d = 6 * time.Second
				if got, want := l.run(d), uint64(0.95*l.rate*d.Seconds()); got < want {
					t.Errorf("%d bytes in %v, want %d", got, d, want)
				}
				if l.waiting > queue {
					t.Errorf("%d bytes in the queue, want at most %d", l.waiting, queue)
				}
			}
		})
	}
}

// A path that becomes faster is filled again, one that becomes slower does not
// keep the old one's queue.
func TestPaceFollowsThePath(t *testing.T) {
	l := &line{rate: 5e6, roundTrip: 40 * time.Millisecond, now: time.Unix(0, 0)}
	l.run(10 * time.Second)
	l.rate = 50e6
	l.run(5 * time.Second)
	if got := l.run(time.Second); got < 45e6 {
		t.Errorf("%d bytes in a second on a line that became faster", got)
	}
	l.rate = 5e6
	l.run(3 * paceWindow)
	l.run(time.Second)
	if most := uint64(2*minPath + 5e6*0.02); l.waiting > most {
		t.Errorf("%d bytes in the queue of a line that became slower, want at most %d", l.waiting, most)
	}
}

// What is acknowledged late, because little was sent, says nothing of the path.
func TestPaceOfLittle(t *testing.T) {
	var p pace
	now := time.Unix(0, 0)
	for range 1000 {
		s := p.sending(now, true)
		s.limited = true
		now = now.Add(ackDelay)
		p.acknowledged(s, 100, now)
		now = now.Add(time.Second)
	}
	if p.bandwidth() != 0 {
		t.Errorf("%.0f bytes/s on a path that was never full", p.bandwidth())
	}
}
