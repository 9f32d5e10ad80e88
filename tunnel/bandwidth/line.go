package bandwidth

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// turnTime is how long what goes in one turn should take.
	turnTime = 10 * time.Millisecond
	minTurn  = 512 // bytes
	maxTurn  = 64 << 10
	// lateness is how long a timer, or whoever was called, may be late without
	// anything being lost by it.
	lateness = 50 * time.Millisecond
)

// Line is what all share: one direction of a server.
type Line struct {
	mu      sync.Mutex // guards everything, also of the shares
	bucket  Bucket
	waiting []*Share // in no order
	clock   float64  // how much a share has been given that has always had its part
	timer   *time.Timer
}

// NewLine returns a line for so many bytes per second, 0 for no limit.
func NewLine(rate int64) *Line {
	l := new(Line)
	l.bucket.limit(rate)
	return l
}

// limit sets a rate of bytes.
func (b *Bucket) limit(rate int64) {
	b.Set(float64(rate), max(float64(rate)*lateness.Seconds(), minTurn), time.Now())
}

// Group bounds several shares of a line together.
type Group struct {
	line    *Line
	limited atomic.Bool

	// Guarded by line.mu.
	bucket Bucket
	clock  float64 // of the group, as that of the line
	next   *Share  // while the line looks for whose turn it is
}

// Group returns a new group of the line, without a limit. There is nothing to be closed.
func (l *Line) Group() *Group { return &Group{line: l} }

// SetRate bounds the bytes per second of all shares of the group together, 0 for no limit
// but theirs. It counts at once, also for those who wait.
func (g *Group) SetRate(rate int64) {
	g.line.mu.Lock()
	defer g.line.mu.Unlock()
	g.bucket.limit(rate)
	g.limited.Store(rate > 0)
	g.line.dispatch()
}

// Rested reports whether a new group in the place of g would be given no more than g.
func (g *Group) Rested() bool {
	g.line.mu.Lock()
	defer g.line.mu.Unlock()
	return g.bucket.Full(time.Now())
}

// Share returns a new part of the group's line, bounded with the rest of the group, and
// without a limit of its own. There is nothing to be closed.
func (g *Group) Share() *Share {
	s := &Share{line: g.line, group: g}
	s.limited.Store(g.line.bucket.rate > 0)
	return s
}

// Share is an identity's part of a line.
type Share struct {
	line    *Line
	group   *Group
	limited atomic.Bool

	// Guarded by line.mu.
	bucket  Bucket
	row     []*Turn // in the order in which they asked; some may have given up
	given   float64 // bytes, of those who share the line's clock
	inGroup float64 // the same of the group's clock
	waiting bool    // is in line.waiting
}

// Share returns a new part of the line, without a limit of its own. There is nothing
// to be closed.
func (l *Line) Share() *Share { return l.Group().Share() }

// SetRate bounds the share's bytes per second, 0 for no limit but the line's. It
// counts at once, also for those who wait.
func (s *Share) SetRate(rate int64) {
	l := s.line
	l.mu.Lock()
	defer l.mu.Unlock()
	s.bucket.limit(rate)
	s.limited.Store(rate > 0 || l.bucket.rate > 0)
	l.dispatch()
}

// Rested reports whether a new share in the place of s would be given no more than s.
func (s *Share) Rested() bool {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	return s.bucket.Full(time.Now())
}

// Limited reports whether anything bounds the share. While nothing does, Take does
// not wait.
func (s *Share) Limited() bool { return s.limited.Load() || s.group.limited.Load() }

// buckets are what a turn of the share's takes from. Called with the line's mu held.
func (s *Share) buckets() [3]*Bucket {
	return [...]*Bucket{&s.bucket, &s.group.bucket, &s.line.bucket}
}

// Turn is one stream's place in a row; its zero value is ready. It is for one Take
// at a time.
type Turn struct {
	want    int // bytes; 0: nothing any more
	granted chan int
}

// Take waits for t's turn to send some of n bytes, n > 0, and returns how many. It
// returns 0 as soon as done is closed.
func (s *Share) Take(done <-chan struct{}, t *Turn, n int) int {
	if !s.Limited() {
		return n
	}
	l := s.line
	l.mu.Lock()
	if t.granted == nil {
		t.granted = make(chan int, 1)
	}
	t.want = n
	s.row = append(s.row, t)
	if !s.waiting {
		s.waiting = true
		l.waiting = append(l.waiting, s)
	}
	l.dispatch()
	l.mu.Unlock()
	select {
	case n := <-t.granted:
		return n
	case <-done:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.want = 0
	select {
	case <-t.granted: // at the same moment
	default:
	}
	return 0
}

// dispatch gives turns as long as there is something to give, and sees to it that it
// is called again when there is more. Called with mu held.
func (l *Line) dispatch() {
	now := time.Now()
	for {
		s, wait := l.next(now)
		if s == nil {
			if wait > 0 {
				l.wake(wait)
			}
			return
		}
		s.give()
	}
}

// next is whose turn it is: of those who wait and have not used up what is theirs, the
// share that was given least. Of each group only the share counts that was given least of
// what the group has. If there is none it says how long to wait for one, 0 if nobody
// waits. Called with mu held.
func (l *Line) next(now time.Time) (next *Share, wait time.Duration) {
	l.bucket.fill(now)
	waiting := l.waiting[:0]
	for _, s := range l.waiting {
		for len(s.row) > 0 && s.row[0].want == 0 {
			s.pop()
		}
		if len(s.row) == 0 {
			s.waiting = false
			continue
		}
		waiting = append(waiting, s)
		var w time.Duration
		for _, b := range s.buckets() {
			b.fill(now)
			w = max(w, b.wait())
		}
		if w > 0 {
			if wait == 0 || w < wait {
				wait = w
			}
			continue
		}
		// Who comes back after a while has no claim to what it did not use.
		s.given = max(s.given, l.clock-maxTurn)
		s.inGroup = max(s.inGroup, s.group.clock-maxTurn)
		if g := s.group; g.next == nil || s.inGroup < g.next.inGroup {
			g.next = s
		}
	}
	clear(l.waiting[len(waiting):])
	l.waiting = waiting
	for _, s := range l.waiting {
		if s.group.next != s {
			continue
		}
		s.group.next = nil
		if next == nil || s.given < next.given {
			next = s
		}
	}
	return next, wait
}

// give gives the first in the row its turn. Called with the line's mu held.
func (s *Share) give() {
	l, t := s.line, s.pop()
	n := min(t.want, s.turn())
	l.clock, s.group.clock = max(l.clock, s.given), max(s.group.clock, s.inGroup)
	s.given += float64(n)
	s.inGroup += float64(n)
	for _, b := range s.buckets() {
		b.spend(n)
	}
	t.want = 0
	t.granted <- n
}

func (s *Share) pop() *Turn {
	t := s.row[0]
	s.row[0] = nil
	if s.row = s.row[1:]; len(s.row) == 0 {
		s.row = nil
	}
	return t
}

// turn is how many bytes go in a turn of the share's.
func (s *Share) turn() int {
	var rate float64
	for _, b := range s.buckets() {
		if b.rate > 0 && (rate == 0 || b.rate < rate) {
			rate = b.rate
		}
	}
	if rate == 0 { // the limit has just been lifted
		return maxTurn
	}
	return int(min(max(rate*turnTime.Seconds(), minTurn), maxTurn))
}

// wake has dispatch called after d. Called with mu held.
func (l *Line) wake(d time.Duration) {
	if l.timer != nil {
		l.timer.Reset(d)
		return
	}
	l.timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.dispatch()
	})
}
