package tunnel

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// failureMemory is how long a server that failed is tried after those that did not.
const failureMemory = 5 * time.Minute

// servers says in which order a client's servers are tried. They are numbered from 0.
type servers struct {
	random bool

	mu   sync.Mutex
	last []time.Time // when each failed last; zero: not since it last worked
}

func newServers(n int, random bool) *servers {
	return &servers{random: random, last: make([]time.Time, n)}
}

// order is all servers in the order in which to try them now: first that which has
// the session, -1 for none; then those that have not failed lately, as configured or
// at random; then the others, beginning with the one whose failure is oldest.
func (s *servers) order(now time.Time, has int) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]int, len(s.last))
	for i := range all {
		all[i] = i
	}
	if s.random {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	slices.SortStableFunc(all, func(i, j int) int { return s.recent(i, now).Compare(s.recent(j, now)) })
	if has >= 0 {
		all = slices.DeleteFunc(all, func(i int) bool { return i == has })
		all = slices.Insert(all, 0, has)
	}
	return all
}

// recent is when server i failed, zero if that is forgotten.
func (s *servers) recent(i int, now time.Time) time.Time {
	if now.Sub(s.last[i]) >= failureMemory {
		return time.Time{}
	}
	return s.last[i]
}

// failed notes that server i could not be used, and worked that it could.
func (s *servers) failed(i int, now time.Time) { s.set(i, now) }
func (s *servers) worked(i int)                { s.set(i, time.Time{}) }

func (s *servers) set(i int, failure time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[i] = failure
}
