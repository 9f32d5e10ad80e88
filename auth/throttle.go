package auth

import (
	"container/list"
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	// freeFailures of an address are answered at once; one is forgotten each
	// forgetAfter.
	freeFailures = 10
	forgetAfter  = 6 * time.Second
	// failureDelay is how long an answer to one more is held back.
	failureDelay = time.Second
	// maxHeld answers of one address are held back at a time: half of the
	// connections that one may have, so that there is room for others behind it.
	// One more is answered at once.
	maxHeld = 32
	// maxFailing addresses are kept in mind; one more, and the one that has not
	// failed for longest is forgotten.
	maxFailing = 1 << 16
)

// throttle counts failures by address. What it has counted is forgotten with time,
// and what it keeps is bounded.
type throttle struct {
	mu     sync.Mutex // guards the rest
	byAddr map[netip.Prefix]*list.Element
	recent *list.List // of *failing, the one that failed last in front
}

// failing is an address with failures.
type failing struct {
	addr  netip.Prefix
	count float64 // when it was last looked at
	seen  time.Time
	held  int // answers
}

func newThrottle() *throttle {
	return &throttle{byAddr: make(map[netip.Prefix]*list.Element), recent: list.New()}
}

// SourceOf is what counts as one address: whoever has one IPv6 address mostly has the 64
// bits behind it too. It is the zero Prefix for no address.
func SourceOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}

// look is the address with what is left of its failures, nil if there are none.
// Called with mu held.
func (t *throttle) look(key netip.Prefix) *failing {
	e, ok := t.byAddr[key]
	if !ok {
		return nil
	}
	f, now := e.Value.(*failing), time.Now()
	f.count = max(0, f.count-float64(now.Sub(f.seen))/float64(forgetAfter))
	f.seen = now
	return f
}

// add counts a failure. More than there is delay for are not counted: an address
// begins anew after a minute without any.
func (t *throttle) add(addr netip.Addr) {
	key := SourceOf(addr)
	if !key.IsValid() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.look(key)
	if f == nil {
		f = &failing{addr: key, seen: time.Now()}
		t.byAddr[key] = t.recent.PushFront(f)
	} else {
		t.recent.MoveToFront(t.byAddr[key])
	}
	f.count = min(f.count+1, freeFailures+1)
	for oldest := t.recent.Back(); oldest != nil; oldest = t.recent.Back() {
		f := oldest.Value.(*failing)
		if t.recent.Len() <= maxFailing && time.Since(f.seen) < freeFailures*forgetAfter {
			break
		}
		t.recent.Remove(oldest)
		delete(t.byAddr, f.addr)
	}
}

// exhausted reports whether the address has no free failure left.
func (t *throttle) exhausted(addr netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.look(SourceOf(addr))
	return f != nil && f.count >= freeFailures
}

// hold waits if the address has failed too often. It returns ErrThrottled at once if
// too many wait, and ctx's error if that ends.
func (t *throttle) hold(ctx context.Context, addr netip.Addr) error {
	t.mu.Lock()
	f := t.look(SourceOf(addr))
	if f == nil || f.count <= freeFailures {
		t.mu.Unlock()
		return nil
	}
	if f.held >= maxHeld {
		t.mu.Unlock()
		return ErrThrottled
	}
	f.held++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		f.held--
	}()
	timer := time.NewTimer(failureDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
