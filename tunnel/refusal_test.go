package tunnel

import (
	"sync"
	"testing"
	"time"

	"culvert/auth"
	"culvert/test/bubble"
)

// Refusals of one identity take a millisecond each, one after the other, and those of
// another do not wait for them.
func TestRefusalsTakeTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{})
		alice, bob := us.join("alice"), us.join("bob")
		start := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(alice.refuse)
		}
		bob.refuse()
		if took := time.Since(start); took != time.Millisecond {
			t.Errorf("bob's refusal took %v", took)
		}
		all.Wait()
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("alice's refusals took %v", took)
		}

		p := newPeer(t, "carol")
		err := error(&auth.DeniedError{})
		p.usage.limit(auth.Limits{Streams: 1})
		if err := p.usage.enter(); err != nil {
			t.Fatal(err)
		}
		for what, refuse := range map[string]func(){
			"listen": func() { p.listenRefused("localhost:80", err) },
			"target": func() { p.usage.targetRefused(nil, err) },
			"limit":  func() { _ = p.usage.enterTold(nil) },
		} {
			start := time.Now()
			if refuse(); time.Since(start) != time.Millisecond {
				t.Errorf("%s: refused after %v", what, time.Since(start))
			}
		}
	})
}
