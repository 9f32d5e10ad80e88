package link

import "time"

// allowance is how often something may happen: a number of times at once, and then at
// a rate. It has no lock. On a nil one everything is allowed.
type allowance struct {
	most, perSecond float64
	used            float64 // of most, at the time since
	since           time.Time
}

func (a *allowance) refresh(now time.Time) {
	a.used = max(0, a.used-now.Sub(a.since).Seconds()*a.perSecond)
	a.since = now
}

// left says whether it may happen now.
func (a *allowance) left(now time.Time) bool {
	if a == nil {
		return true
	}
	a.refresh(now)
	return a.used+1 <= a.most
}

// take says the same, and that it does.
func (a *allowance) take(now time.Time) bool {
	if !a.left(now) {
		return false
	}
	if a != nil {
		a.used++
	}
	return true
}

// unused says whether everything is allowed that ever was.
func (a *allowance) unused(now time.Time) bool {
	a.refresh(now)
	return a.used == 0
}
