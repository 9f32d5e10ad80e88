package mux

import (
	"math"
	"sync"
	"sync/atomic"
)

// Budget bounds the bytes that the sessions of a process, or of somebody in it,
// have received and nobody has read yet. When it is exceeded, the session that
// holds most of them resets the stream that is stuck for longest. One Budget serves
// many sessions.
type Budget struct {
	parent *Budget // which the bytes count for, too; nil: none
	limit  atomic.Int64
	used   atomic.Int64

	mu       sync.Mutex
	sessions map[*Session]struct{}
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget {
	b := &Budget{sessions: map[*Session]struct{}{}}
	b.SetLimit(limit)
	return b
}

// Part returns a budget for some of the sessions of b, without a limit of its own.
func (b *Budget) Part() *Budget {
	part := NewBudget(0)
	part.parent = b
	return part
}

// SetLimit changes the limit, 0 for none. It takes effect with the next bytes.
func (b *Budget) SetLimit(limit int64) {
	if limit == 0 {
		limit = math.MaxInt64
	}
	b.limit.Store(limit)
}

// join, leave, charge, spare and relieve are of b and what it is a part of. A nil
// budget has no limit.
func (b *Budget) join(s *Session) {
	for ; b != nil; b = b.parent {
		b.mu.Lock()
		b.sessions[s] = struct{}{}
		b.mu.Unlock()
	}
}

func (b *Budget) leave(s *Session) {
	for ; b != nil; b = b.parent {
		b.mu.Lock()
		delete(b.sessions, s)
		b.mu.Unlock()
	}
}

// charge notes that n more bytes wait.
func (b *Budget) charge(n int64) {
	for ; b != nil; b = b.parent {
		b.used.Add(n)
	}
}

// spare says whether at least half of it is free.
func (b *Budget) spare() bool {
	for ; b != nil; b = b.parent {
		if b.used.Load() >= b.limit.Load()/2 {
			return false
		}
	}
	return true
}

// relieve has the largest session reset a stream if there is too much.
func (b *Budget) relieve() {
	for ; b != nil; b = b.parent {
		if b.used.Load() > b.limit.Load() {
			b.relieveOne()
		}
	}
}

func (b *Budget) relieveOne() {
	b.mu.Lock()
	var largest *Session
	for s := range b.sessions {
		if largest == nil || s.held.Load() > largest.held.Load() {
			largest = s
		}
	}
	b.mu.Unlock()
	if largest != nil {
		largest.resetLongestBlocked()
	}
}
