package carrier

import (
	"fmt"
	"sync"
	"time"
)

// slowDial is how long a Dial may take before it says what it is waiting for.
const slowDial = 3 * time.Second

// progress says what a Dial that takes long is waiting for. Its methods may be called
// concurrently, also after the Dial, and on nil.
type progress struct {
	tell  func(what string, after time.Duration)
	began time.Time

	mu    sync.Mutex // guards the following
	what  string     // the Dial is waiting for
	told  string     // of those, the last that was told
	timer *time.Timer
	over  bool
}

// newProgress begins to watch over a Dial, until stop is called. Nil if tell is nil.
func newProgress(tell func(what string, after time.Duration)) *progress {
	if tell == nil {
		return nil
	}
	p := &progress{tell: tell, began: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(slowDial, p.slow)
	return p
}

// waits notes what the Dial is waiting for from now on.
func (p *progress) waits(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = fmt.Sprintf(format, args...)
}

func (p *progress) slow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	if p.what != p.told {
		p.told = p.what
		p.tell(p.what, time.Since(p.began))
	}
	p.timer.Reset(slowDial)
}

func (p *progress) stop() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.timer.Stop()
}
