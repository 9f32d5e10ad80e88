package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test is [synctest.Test] on one processor.
//
// With more of them the race detector may crash: what it knows of a bubble's
// timers is used by every goroutine that takes an expired tick from its channel,
// by several at once (golang/go#78156). Races are found all the same, as they
// are by the order of events and not by the time at which they happen.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	enter()
	defer leave()
	synctest.Test(t, f) //nolint:forbidigo // the one place
}

// Parallel tests may be in several bubbles at once.
var bubbles struct {
	sync.Mutex
	open       int
	processors int // outside
}

func enter() {
	bubbles.Lock()
	defer bubbles.Unlock()
	if bubbles.open++; bubbles.open == 1 {
		bubbles.processors = runtime.GOMAXPROCS(1)
	}
}

func leave() {
	bubbles.Lock()
	defer bubbles.Unlock()
	if bubbles.open--; bubbles.open == 0 {
		runtime.GOMAXPROCS(bubbles.processors)
	}
}
