package tunnel

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"culvert/mux/carrier"
)

// failureMemory is how long a server that failed is tried after those that did not.
const failureMemory = 5 * time.Minute

// servers says in which order a client's servers are tried. They are numbered from 0.
type servers struct {
	random bool

	mu     sync.Mutex
	last   []time.Time  // when each failed last; zero: not since it last worked
	closed []retryLater // until when each wants to be left alone
}

// retryLater is the answer of a server that asked to be left alone for some time.
type retryLater struct {
	err   error // nil: there was none
	until time.Time
}

func newServers(n int, random bool) *servers {
	return &servers{random: random, last: make([]time.Time, n), closed: make([]retryLater, n)}
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

// failed notes that server i could not be used because of err.
func (s *servers) failed(i int, now time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[i] = now
	if after := carrier.RetryAfter(err); after > 0 {
		s.closed[i] = retryLater{err, now.Add(after)}
	}
}

// worked notes that server i could be used.
func (s *servers) worked(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[i], s.closed[i] = time.Time{}, retryLater{}
}

// open is nil if server i may be dialled now. Otherwise the server has asked to be left
// alone for some time, and the error is a [*LaterError].
func (s *servers) open(i int, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.closed[i]; c.err != nil && now.Before(c.until) {
		return &LaterError{Err: c.err, After: c.until.Sub(now)}
	}
	return nil
}

// retryAfter is how long to wait after an error of a dial because every server asked
// for it; 0: not every one did.
func retryAfter(err error) time.Duration {
	if all, ok := errors.AsType[*ServersError](err); ok {
		first := slices.MinFunc(all.Errs, func(a, b error) int { return cmp.Compare(retryAfter(a), retryAfter(b)) })
		return retryAfter(first)
	}
	if later, ok := errors.AsType[*LaterError](err); ok {
		return later.After
	}
	return carrier.RetryAfter(err)
}
