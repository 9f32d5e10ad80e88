package mux

import (
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// turns says which stream may write to the link. Streams put their data frames
// there themselves, one at a time and in the order in which they asked: what
// smux would do with each frame, two hand-overs between goroutines, costs more
// than the rest of its way. smux still writes the frames that open and close
// streams. Guarded by Session.mu.
//
// Little writes go before others, because somebody waits for an answer; but no
// more of them between two others than one frame's worth.
type turns struct {
	writing *ticket    // whose turn it is
	waiting [2]turnRow // little ones, others
	ahead   int        // bytes of little ones since the last of the others

	little   uint32 // the stream of the last little write
	littleAt time.Time
}

// ticket is one of a stream's two ways to ask for a turn: for Write, and for what
// opens the stream and closes it. A Write that gives up leaves the other alone.
type ticket struct {
	st      *Stream
	waiting bool // stands in a row
}

// turnRow are tickets in the order in which they asked. Some may have given up.
type turnRow []*ticket

func (r *turnRow) pop() {
	(*r)[0] = nil
	if *r = (*r)[1:]; len(*r) == 0 {
		*r = nil
	}
}

const (
	// maxFrame is the payload of the largest frame: close to what smux's header
	// can say, and a chunk of an inbox with little to spare.
	maxFrame = 60 << 10
	// maxTurn is how much one stream writes in a turn if nobody else waits.
	maxTurn = 4 * maxFrame
	// littleWrite is the largest that goes before others.
	littleWrite = 2 << 10

	minFrame = 8 << 10
	// frameTime is how long a frame should take: it is what an interactive stream
	// waits for, and by how much the link is overfilled.
	frameTime = time.Millisecond

	// crowdTime is how soon little writes of two streams follow each other when
	// many streams are talking.
	crowdTime = 200 * time.Microsecond
)

// frameSize is the payload of the largest frame on this path.
func (s *Session) frameSize() int {
	rate := s.link.Bandwidth()
	if rate == 0 {
		return maxFrame
	}
	return int(min(max(rate*frameTime.Seconds(), minFrame), maxFrame))
}

// begin waits for credit and for the stream's turn to write and takes up to n
// bytes of the credit. Unless there is an error, end is to be called. crowded says
// that other streams are likely to write a little too if they are let: their
// frames can leave in one message with these, and one system call.
func (st *Stream) begin(n int) (taken int, crowded bool, err error) {
	s := st.sess
	frame := s.frameSize()
	s.mu.Lock()
	defer s.mu.Unlock()
	little := n <= littleWrite
	err = s.takeTurn(&st.write, little, st.writeErrorLocked, func() bool { return st.credit > st.sent })
	if err != nil {
		return 0, false, err
	}
	st.sentAt = time.Now()
	if little {
		crowded = s.turns.crowded(st.id, st.sentAt)
	}
	most := frame
	if frame == maxFrame && s.turns.nobody() {
		most = maxTurn
	}
	n = int(min(uint64(n), uint64(most), st.credit-st.sent))
	st.sent += uint64(n)
	return n, crowded, nil
}

// crowded notes a little write of stream id at time now and reports whether there
// was one of another stream just before.
func (t *turns) crowded(id uint32, now time.Time) bool {
	crowded := t.little != id && now.Sub(t.littleAt) < crowdTime
	t.little, t.littleAt = id, now
	return crowded
}

// takeTurn waits until it is k's turn, and until ready says so, or failed says
// why not. Called with mu held.
func (s *Session) takeTurn(k *ticket, little bool, failed func() error, ready func() bool) error {
	t := &s.turns
	for {
		if err := failed(); err != nil {
			k.waiting = false
			s.endTurn(k)
			return err
		}
		if ready() {
			if t.writing == k || t.writing == nil && t.nobody() && !s.link.Full() {
				t.writing = k
				return nil
			}
			if !k.waiting {
				k.waiting = true
				row := &t.waiting[1]
				if little {
					row = &t.waiting[0]
				}
				*row = append(*row, k)
			}
		}
		k.st.writable.Wait()
	}
}

// end gives the turn to the next.
func (k *ticket) end() {
	s := k.st.sess
	s.mu.Lock()
	s.endTurn(k)
	s.mu.Unlock()
}

// endTurn is end with mu held; without effect if it is not k's turn.
func (s *Session) endTurn(k *ticket) {
	if s.turns.writing == k {
		s.turns.writing = nil
		s.nextTurn()
	}
}

// nextTurn gives the turn to who has waited for longest, if there is room.
// Called with mu held.
func (s *Session) nextTurn() {
	t := &s.turns
	for t.writing == nil && !t.nobody() {
		row := &t.waiting[0]
		if len(*row) == 0 || t.ahead >= maxFrame && len(t.waiting[1]) > 0 {
			row = &t.waiting[1]
		}
		k := (*row)[0]
		if k.waiting {
			if s.link.Full() {
				return
			}
			k.waiting = false
			t.writing = k
			k.st.writable.Broadcast()
			if row == &t.waiting[1] {
				t.ahead = 0
			} else {
				t.ahead += littleWrite
			}
		}
		row.pop()
	}
}

func (t *turns) nobody() bool { return len(t.waiting[0])+len(t.waiting[1]) == 0 }

// room is called by the link when it is not full any more.
func (s *Session) room() {
	s.mu.Lock()
	s.nextTurn()
	s.mu.Unlock()
}

// writeErrorLocked is why nothing can be written. Called with mu held.
func (st *Stream) writeErrorLocked() error {
	switch {
	case st.endedLocked() != nil:
		return st.endedLocked()
	case st.writeDone:
		return io.ErrClosedPipe
	case st.writeBy.passed():
		return &Error{Code: TimedOut, Reason: "write deadline"}
	default:
		return nil
	}
}

// endedLocked is the reset of the stream or the end of its session, nil if there
// was none. Called with mu held.
func (st *Stream) endedLocked() error {
	switch {
	case st.reset != nil:
		return st.reset
	case st.sess.err != nil:
		return st.sess.lostLocked(st.sess.err)
	default:
		return nil
	}
}

// exclusive runs f, which has smux write a frame, in a turn: smux gives up when
// the link is full for long. It fails when the stream has ended.
func (st *Stream) exclusive(f func() error) error {
	s := st.sess
	s.mu.Lock()
	err := s.takeTurn(&st.edge, true, st.endedLocked, func() bool { return true })
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer s.link.Send()
	defer st.edge.end()
	return f()
}

// batch is some data frames on their way to the link.
type batch struct {
	headers [maxTurn / maxFrame][frameHeader]byte
	vec     [2 * maxTurn / maxFrame][]byte
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// push queues p, of at most maxTurn bytes, as data of a stream. It does not wait.
func (s *Session) push(id uint32, p []byte) error {
	f := batches.Get().(*batch)
	n := 0
	for len(p) > 0 {
		k := min(len(p), maxFrame)
		h := &f.headers[n/2]
		h[0], h[1] = smuxVersion, framePSH
		binary.LittleEndian.PutUint16(h[2:], uint16(k))
		binary.LittleEndian.PutUint32(h[4:], id)
		f.vec[n], f.vec[n+1] = h[:], p[:k]
		n += 2
		p = p[k:]
	}
	err := s.link.Append(f.vec[:n])
	clear(f.vec[:n])
	batches.Put(f)
	return err
}
