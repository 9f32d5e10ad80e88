package mux

import (
	"math"
	"sync"
	"sync/atomic"
)

// Budget bounds what the sessions of a process, or of somebody in it, take of memory:
// the bytes that they have received and nobody has read yet, those that they have sent and
// keep until the peer has acknowledged them, and 8 KiB for each stream.
// When it is exceeded, whoever has most of it gives some back: of the parts of a budget
// the largest, and there the session that takes most, which resets the stream that is
// stuck for longest, or else the one that has been idle for longest. One Budget serves
// many sessions.
type Budget struct {
	parent *Budget // which the bytes count for, too; nil: none
	limit  atomic.Int64
	used   atomic.Int64

	mu       sync.Mutex // guards the rest; taken before the parent's
	sessions map[*Session]struct{}
	parts    map[*Budget]struct{} // that have sessions
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget {
	b := &Budget{sessions: map[*Session]struct{}{}, parts: map[*Budget]struct{}{}}
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

// join, leave, Charge, Spare, admit and relieve are of b and what it is a part of. A nil
// budget has no limit.
func (b *Budget) join(s *Session) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[s] = struct{}{}
	b.enlist()
}

func (b *Budget) leave(s *Session) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.sessions, s)
	b.enlist()
}

// enlist has the parent know whether b has anybody. Called with mu held.
func (b *Budget) enlist() {
	p := b.parent
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b.sessions)+len(b.parts) > 0 {
		p.parts[b] = struct{}{}
	} else {
		delete(p.parts, b)
	}
	p.enlist()
}

// Charge notes that n more bytes are taken, or fewer.
func (b *Budget) Charge(n int64) {
	for ; b != nil; b = b.parent {
		b.used.Add(n)
	}
}

// Spare says whether at least half of it is free.
func (b *Budget) Spare() bool {
	for ; b != nil; b = b.parent {
		if b.used.Load() >= b.limit.Load()/2 {
			return false
		}
	}
	return true
}

// admit says whether there is room for one more stream of s. When there is not, whoever takes
// most of the budget makes some: a stream is reset that is stuck, and an idle one only for
// somebody else.
func (b *Budget) admit(s *Session) bool {
	var own *Budget // the part of b that s belongs to, nil: s itself is in b
	for ; b != nil; b, own = b.parent, b {
		if b.used.Load()+streamCost <= b.limit.Load() {
			continue
		}
		part, session := b.largest()
		if mine := part == own && (part != nil || session == s); !takeBack(part, session, !mine) {
			return false
		}
	}
	return true
}

// relieve has whoever takes most reset a stream if there is too much.
func (b *Budget) relieve() {
	for ; b != nil; b = b.parent {
		if b.used.Load() > b.limit.Load() {
			part, session := b.largest()
			takeBack(part, session, true)
		}
	}
}

// largest is who takes most of b: a part of it, or a session that is in none.
func (b *Budget) largest() (part *Budget, session *Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := int64(0)
	for p := range b.parts {
		if n := p.used.Load(); n > most {
			part, most = p, n
		}
	}
	for s := range b.sessions {
		if n := s.charged.Load(); n > most {
			part, session, most = nil, s, n
		}
	}
	return part, session
}

// takeBack has the session, or the largest of the part, reset a stream: one that is stuck
// or, if there is none, with idle, one that is not. It says whether there was one.
func takeBack(part *Budget, session *Session, idle bool) bool {
	for part != nil {
		part, session = part.largest()
	}
	return session != nil && (session.resetLongestBlocked() || idle && session.resetLongestIdle())
}
