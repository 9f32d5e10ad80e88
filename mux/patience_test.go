package mux

import (
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// What the peer has to do in time it has time for only while there is a carrier.
func TestTimeWithoutCarrier(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newScript(nil)
		attach := func(at time.Time) { l.attached.Store(&at) }
		attach(time.Now())
		s := bare(l, Config{OpenTimeout: 10 * time.Second})
		defer s.cancel(nil)
		s.mu.Lock()
		s.arrivals.add(5)
		s.arrivals.watch(s)
		s.mu.Unlock()
		waiting := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.arrivals.of[5] != nil
		}
		over := make(chan time.Time, 1)
		s.after(10*time.Second, func() { over <- time.Now() })
		stopped := s.after(20*time.Second, func() { t.Error("a wait went on that was ended") })

		time.Sleep(9 * time.Second)
		attach(time.Time{}) // cut
		time.Sleep(55 * time.Second)
		attach(time.Now())
		back := time.Now()
		stopped.Stop()
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		if len(over) > 0 || !waiting() {
			t.Error("the time without a carrier counted")
		}
		if waited := (<-over).Sub(back); waited != 10*time.Second {
			t.Errorf("waited for %v with the new carrier, want 10s", waited)
		}
		synctest.Wait()
		if waiting() {
			t.Error("a stream without a header is still there")
		}
	})
}
