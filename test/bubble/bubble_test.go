package bubble

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// Without the one processor the race detector ends the program here.
func TestExpiredTicks(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	Test(t, func(t *testing.T) {
		var takers sync.WaitGroup
		for range 4 {
			takers.Go(func() {
				for range 5000 {
					<-time.NewTimer(0).C
				}
			})
		}
		takers.Wait()
	})
	if after := runtime.GOMAXPROCS(0); after != before {
		t.Errorf("%d processors after the bubble, %d before", after, before)
	}
}
