package mux

import (
	"sync"
	"sync/atomic"
)

// Budget bounds the bytes that the sessions of a process have received and
// nobody has read yet. When it is exceeded, the session that holds most of them
// resets the stream that is stuck for longest. One Budget serves many sessions.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu       sync.Mutex
	sessions map[*Session]struct{}
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget {
	return &Budget{limit: limit, sessions: map[*Session]struct{}{}}
}

func (b *Budget) join(s *Session) {
	b.mu.Lock()
	b.sessions[s] = struct{}{}
	b.mu.Unlock()
}

func (b *Budget) leave(s *Session) {
	b.mu.Lock()
	delete(b.sessions, s)
	b.mu.Unlock()
}

// relieve has the largest session reset a stream.
func (b *Budget) relieve() {
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
