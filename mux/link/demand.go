package link

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// urgentPause is the longest pause before the next attempt to get a carrier while
// somebody waits for one, and half of it the shortest: many connections that wait
// make no more attempts than one does.
const urgentPause = time.Second

// Demand counts who waits for a carrier, so that the next attempt to get one is made
// soon. The zero value is ready. Its methods may be called concurrently.
type Demand struct {
	mu      sync.Mutex
	waiting int
	exists  chan struct{} // closed while somebody waits
}

// Add notes that somebody waits for a carrier, until the function that it returns is
// called once.
func (d *Demand) Add() (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting++; d.waiting == 1 {
		close(d.channelLocked())
	}
	return d.remove
}

func (d *Demand) remove() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting--; d.waiting == 0 {
		d.exists = nil
	}
}

func (d *Demand) channelLocked() chan struct{} {
	if d.exists == nil {
		d.exists = make(chan struct{})
	}
	return d.exists
}

// some returns a channel that is closed as soon as somebody waits.
func (d *Demand) some() <-chan struct{} {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channelLocked()
}

// Pause waits between two attempts to get a carrier: for the time most or, while
// somebody waits for a carrier, for urgentPause at the longest, but for least in any
// case. It returns early when ctx ends. A nil Demand means that nobody waits.
func (d *Demand) Pause(ctx context.Context, most, least time.Duration) {
	began := time.Now()
	timer := time.NewTimer(max(most, least))
	defer timer.Stop()
	select {
	case <-timer.C:
		return
	case <-ctx.Done():
		return
	case <-d.some():
	}
	urgent := urgentPause/2 + rand.N(urgentPause/2)
	timer.Reset(max(min(most, urgent), least) - time.Since(began))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
