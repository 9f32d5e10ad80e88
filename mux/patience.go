package mux

import (
	"sync"
	"time"
)

// patience is a wait for something from the peer. Time counts only while the session has a
// carrier, and from the beginning of the present one.
type patience struct {
	mu    sync.Mutex
	timer *time.Timer // nil: it is over
}

// after has f called, on a goroutine of its own, when the peer has had the time d, unless
// Stop is called before.
func (s *Session) after(d time.Duration, f func()) *patience {
	p := new(patience)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(d, func() {
		p.mu.Lock()
		if p.timer == nil {
			p.mu.Unlock()
			return
		}
		if left := d - s.link.AttachedFor(); left > 0 {
			p.timer.Reset(left)
			p.mu.Unlock()
			return
		}
		p.timer = nil
		p.mu.Unlock()
		f()
	})
	return p
}

// Stop ends the wait, of which nothing comes then unless f was called already. A nil
// patience has ended.
func (p *patience) Stop() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}
