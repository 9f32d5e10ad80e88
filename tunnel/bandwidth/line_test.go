package bandwidth

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// sender is a stream that always has more to send.
type sender struct {
	share *Share
	turn  Turn

	bytes atomic.Int64
	pause time.Duration // the longest between two turns
}

// send sends pieces of so many bytes until done is closed.
func (s *sender) send(done <-chan struct{}, piece int) {
	last := time.Now()
	for {
		for left := piece; left > 0; {
			n := s.share.Take(done, &s.turn, left)
			if n == 0 {
				return
			}
			left -= n
			s.bytes.Add(int64(n))
			s.pause = max(s.pause, time.Since(last))
			last = time.Now()
		}
	}
}

// run has all of them send for d of fake time.
func run(t *testing.T, d time.Duration, senders ...*sender) {
	t.Helper()
	done := make(chan struct{})
	var sending sync.WaitGroup
	for i, s := range senders {
		sending.Go(func() { s.send(done, 60_000-7*i) })
	}
	time.Sleep(d)
	close(done)
	sending.Wait()
}

func within(t *testing.T, what string, got int64, want, percent float64) {
	t.Helper()
	if off := 100 * (float64(got)/want - 1); math.Abs(off) > percent {
		t.Errorf("%s: %d bytes, %+.1f %% from the %.0f wanted", what, got, off, want)
	}
}

func TestRate(t *testing.T) {
	for _, rate := range []int64{2_000, 50_000, 1_000_000, 200_000_000} {
		bubble.Test(t, func(t *testing.T) {
			identity, all := &sender{share: NewLine(0).Share()}, &sender{share: NewLine(rate).Share()}
			identity.share.SetRate(rate)
			run(t, 10*time.Second, identity, all)
			for _, s := range []*sender{identity, all} {
				within(t, "one stream", s.bytes.Load(), 10*float64(rate), 5)
				if most := max(100*time.Millisecond, time.Duration(minTurn*int64(time.Second)/rate)+1); s.pause > most {
					t.Errorf("%d bytes a second with a pause of %v", rate, s.pause)
				}
			}
		})
	}
}

// Streams of one identity have the same, and so have identities, whatever the number
// of their streams.
func TestFairness(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		line := NewLine(rate)
		many, one, slow := line.Share(), line.Share(), line.Share()
		slow.SetRate(rate / 10)
		senders := []*sender{{share: one}, {share: slow}}
		for range 10 {
			senders = append(senders, &sender{share: many})
		}
		run(t, 20*time.Second, senders...)
		within(t, "the identity with a limit of its own", senders[1].bytes.Load(), 20*rate/10, 5)
		within(t, "the identity with one stream", senders[0].bytes.Load(), 20*rate*0.45, 5)
		for _, s := range senders[2:] {
			within(t, "one of ten streams", s.bytes.Load(), 20*rate*0.045, 10)
			if s.pause > 400*time.Millisecond {
				t.Errorf("one of ten streams pauses for %v", s.pause)
			}
		}
	})
}

// Who is not there each time that there is something to give still gets its part,
// and who was away for long gets no more than that.
func TestLateReturn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		line := NewLine(rate)
		greedy, late := &sender{share: line.Share()}, &sender{share: line.Share()}
		done := make(chan struct{})
		var sending sync.WaitGroup
		sending.Go(func() { greedy.send(done, 60_000) })
		time.Sleep(10 * time.Second)
		before := greedy.bytes.Load()
		sending.Go(func() {
			for {
				n := late.share.Take(done, &late.turn, 60_000)
				if n == 0 {
					return
				}
				late.bytes.Add(int64(n))
				time.Sleep(5 * time.Millisecond) // half of a turn's time
			}
		})
		time.Sleep(time.Second)
		within(t, "the late one", late.bytes.Load(), rate/2, 15)
		within(t, "the other", greedy.bytes.Load()-before, rate/2, 15)
		close(done)
		sending.Wait()
	})
}

// A new limit counts at once: for who waits under the old one, and for who did not
// have to wait.
func TestSetRate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &sender{share: NewLine(0).Share()}
		if s.share.Limited() || s.share.Take(nil, &s.turn, 1<<30) != 1<<30 {
			t.Error("limited without a limit")
		}
		s.share.SetRate(1)
		done := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			s.send(done, 60_000)
			close(ended)
		}()
		time.Sleep(time.Minute)
		if s.bytes.Load() > 2*minTurn {
			t.Errorf("%d bytes in a minute at one a second", s.bytes.Load())
		}
		before := s.bytes.Load()
		s.share.SetRate(1_000_000)
		time.Sleep(10 * time.Second)
		within(t, "after the change", s.bytes.Load()-before, 10_000_000, 5)
		close(done)
		<-ended

		s.share.SetRate(0)
		if s.share.Limited() {
			t.Error("still limited")
		}
	})
}

// What was overdrawn at a high rate is not paid back at a low one.
func TestLowerRate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		share := NewLine(0).Share()
		share.SetRate(1_000_000)
		var turn Turn
		for sent := 0; sent < 100_000; {
			sent += share.Take(nil, &turn, 10_000)
		}
		share.SetRate(1_000)
		start := time.Now()
		share.Take(nil, &turn, 1)
		if d := time.Since(start); d > time.Second {
			t.Errorf("a byte at 1,000 a second took %v", d)
		}
	})
}

// Lifting a limit lets go who waits.
func TestLimitLifted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		share := NewLine(0).Share()
		share.SetRate(1)
		var a, b Turn
		share.Take(nil, &a, 10_000) // on credit
		share.Take(nil, &a, 10_000)
		got := make(chan int)
		go func() { got <- share.Take(nil, &b, 10_000) }()
		synctest.Wait()
		share.SetRate(0)
		start := time.Now()
		if n := <-got; n != 10_000 || time.Since(start) > 0 {
			t.Errorf("%d bytes after %v", n, time.Since(start))
		}
	})
}

// Who gives up returns at once and stands in nobody's way.
func TestGivingUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		share := NewLine(0).Share()
		share.SetRate(1_000)
		var turns [3]Turn
		for range 3 { // what gathers is used up
			share.Take(nil, &turns[0], minTurn)
		}
		left := make(chan struct{})
		gone := make(chan int)
		go func() { gone <- share.Take(left, &turns[1], 1_000) }()
		synctest.Wait()
		got := make(chan int)
		go func() { got <- share.Take(nil, &turns[2], 1_000) }()
		synctest.Wait()
		start := time.Now()
		close(left)
		if n := <-gone; n != 0 || time.Since(start) > 0 {
			t.Errorf("%d bytes after %v for who gave up", n, time.Since(start))
		}
		if n := <-got; n != minTurn || time.Since(start) > 600*time.Millisecond { // not a turn later
			t.Errorf("%d bytes after %v for the next", n, time.Since(start))
		}
	})
}

func TestBucket(t *testing.T) {
	now := time.Now()
	var b Bucket
	take := func(after time.Duration) (n int) {
		now = now.Add(after)
		for n < 1_000 && b.Take(now) {
			n++
		}
		return n
	}
	if n := take(0); n != 1_000 {
		t.Errorf("%d without a limit", n)
	}
	b.Set(20, 20, now)
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 20}, {49 * time.Millisecond, 0}, {time.Millisecond, 1}, {500 * time.Millisecond, 10}, {time.Hour, 20}} {
		if n := take(step.after); n != step.want {
			t.Errorf("%d after %v, want %d", n, step.after, step.want)
		}
	}
}

// BenchmarkTake is the cost of a turn that nobody waits for.
func BenchmarkTake(b *testing.B) {
	for name, rate := range map[string]int64{"unlimited": 0, "limited": 1 << 50} {
		b.Run(name, func(b *testing.B) {
			s := &sender{share: NewLine(rate).Share()}
			b.ReportAllocs()
			for b.Loop() {
				s.share.Take(nil, &s.turn, maxTurn)
			}
		})
	}
}

// The shares of a group have its rate together, and those beside it do not notice.
func TestGroup(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		line := NewLine(0)
		group := line.Group()
		group.SetRate(1e6)
		one, other, slow, beside := &sender{share: group.Share()}, &sender{share: group.Share()}, &sender{share: group.Share()}, &sender{share: line.Share()}
		slow.share.SetRate(1e5)
		beside.share.SetRate(3e6)
		run(t, 10*time.Second, one, other, slow, beside)
		within(t, "the group", one.bytes.Load()+other.bytes.Load()+slow.bytes.Load(), 1e7, 2)
		within(t, "one of two", one.bytes.Load(), 4.5e6, 2)
		within(t, "one with a rate of its own", slow.bytes.Load(), 1e6, 2)
		within(t, "one beside the group", beside.bytes.Load(), 3e7, 2)
		if group.Rested() {
			t.Error("a group that is in use is rested")
		}
		time.Sleep(time.Second)
		if !group.Rested() {
			t.Error("a group that was left alone is not rested")
		}
		group.SetRate(0)
		if one.share.Limited() || !slow.share.Limited() {
			t.Error("the limit of a group is not lifted, or that of a share is")
		}
	})
}
