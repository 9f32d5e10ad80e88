package tunnel

import (
	"sync"
	"testing"
	"time"

	"culvert/auth"
	"culvert/test/bubble"
)

// Refusals and requests to listen of one identity take a millisecond each, one after the
// other, and those of another do not wait for them.
func TestTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{})
		alice, bob := us.join("alice"), us.join("bob")
		start := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(alice.turn)
		}
		bob.turn()
		if took := time.Since(start); took != time.Millisecond {
			t.Errorf("bob's turn took %v", took)
		}
		all.Wait()
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("alice's turns took %v", took)
		}

		p, ls := newPeer(t, "carol"), newListeners(everything(t), nil, defaults(t, Settings{}))
		err := error(&auth.DeniedError{})
		p.usage.limit(auth.Limits{Streams: 1})
		if err := p.usage.enter(); err != nil {
			t.Fatal(err)
		}
		for what, refuse := range map[string]func(){
			"listen": func() { _, _ = ls.listen(t.Context(), p.peer, 1, "nonsense") },
			"target": func() { p.usage.targetRefused(nil, err) },
			"limit":  func() { _ = p.usage.enterTold(nil) },
		} {
			start := time.Now()
			if refuse(); time.Since(start) != time.Millisecond {
				t.Errorf("%s: done after %v", what, time.Since(start))
			}
		}
	})
}
