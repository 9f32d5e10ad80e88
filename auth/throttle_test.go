package auth

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// An address that fails often waits for its answers, and nobody else does.
func TestThrottle(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := NewGuard(directoryOf(t, Identity{
			Name: "alice", Tokens: []Token{tokenUntil(alice, time.Time{})}, Passwords: []Password{cheap(t, "sesame", light)},
		}))
		taken := counted(g)
		try := func(p Presented, want error, takes time.Duration) {
			t.Helper()
			start := time.Now()
			if _, err := g.Authenticate(t.Context(), p); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			if took := time.Since(start); took != takes {
				t.Errorf("took %v, want %v", took, takes)
			}
		}
		bad, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:0:1::1")
		wrong := Presented{Remote: bad, Bearer: bob}
		for range freeFailures {
			try(wrong, ErrUnknownToken, 0)
		}
		try(wrong, ErrUnknownToken, failureDelay)
		try(Presented{Remote: netip.MustParseAddr("2001:db8::2"), Bearer: bob}, ErrUnknownToken, failureDelay) // the same /64
		try(Presented{Remote: other, Bearer: bob}, ErrUnknownToken, 0)

		// What is good is let in; but no new password is looked at.
		try(Presented{Remote: bad, Bearer: alice}, nil, 0)
		try(Presented{Remote: bad}, ErrNoCredential, 0)
		try(Presented{Remote: bad, User: "alice", Password: "sesame"}, ErrThrottled, failureDelay)
		if n := taken()[light]; n != 0 {
			t.Errorf("%d computations", n)
		}
		try(Presented{Remote: other, User: "alice", Password: "sesame"}, nil, 0)
		try(Presented{Remote: bad, User: "alice", Password: "sesame"}, nil, 0)

		// One is forgotten in six seconds, and all in a minute.
		time.Sleep(2 * forgetAfter)
		try(wrong, ErrUnknownToken, 0)
		try(wrong, ErrUnknownToken, failureDelay)
		time.Sleep(freeFailures*forgetAfter + forgetAfter)
		for range freeFailures {
			try(wrong, ErrUnknownToken, 0)
		}
		try(wrong, ErrUnknownToken, failureDelay)
	})
}

// Few answers of one address are held back at a time, and none of a client that left.
func TestHeldAnswers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := NewGuard(directoryOf(t))
		wrong := Presented{Remote: from(1), Bearer: bob}
		for range freeFailures {
			_, _ = g.Authenticate(t.Context(), wrong)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var held sync.WaitGroup
		for range maxHeld {
			held.Go(func() {
				if _, err := g.Authenticate(ctx, wrong); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnknownToken) {
					t.Errorf("client that left: %v", err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, err := g.Authenticate(t.Context(), wrong); !errors.Is(err, ErrThrottled) || time.Since(start) != 0 {
			t.Errorf("one more: %v after %v", err, time.Since(start))
		}
		cancel()
		held.Wait()
		if _, err := g.Authenticate(t.Context(), wrong); errors.Is(err, ErrThrottled) || time.Since(start) != failureDelay {
			t.Errorf("after they left: %v after %v", err, time.Since(start))
		}
	})
}

// However many addresses fail, what is kept of them is bounded, and soon forgotten.
func TestFailingAddressesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		throttle := newThrottle()
		for n := range maxFailing + 1000 {
			throttle.add(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}))
		}
		if len(throttle.byAddr) != maxFailing || throttle.recent.Len() != maxFailing {
			t.Errorf("%d addresses are kept", len(throttle.byAddr))
		}
		time.Sleep(freeFailures * forgetAfter)
		throttle.add(from(1))
		if len(throttle.byAddr) != 1 || throttle.recent.Len() != 1 {
			t.Errorf("%d addresses are kept after a minute", len(throttle.byAddr))
		}
		throttle.add(netip.Addr{})
		if len(throttle.byAddr) != 1 || throttle.exhausted(netip.Addr{}) {
			t.Error("no address is counted")
		}
	})
}
