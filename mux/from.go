package mux

import "math"

// readAhead is how many streams of a session may wait for the link with their bytes at hand:
// they read while others write. More wait without, and so do all while there is no carrier.
const readAhead = 64

// Room is how many bytes are worth having at hand for a Write; 0: it would wait for the peer's
// window, or behind many others. When the stream has ended it is more
// than that, since a Write says why.
func (st *Stream) Room() int {
	s := st.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.writeErrorLocked() != nil:
		return math.MaxInt32
	case st.credit <= st.sent || len(s.turns.waiting[0])+len(s.turns.waiting[1]) >= readAhead:
		return 0
	case s.link.AttachedFor() == 0 && (!s.turns.nobody() || s.link.Full()): // that may take long
		return 0
	}
	return int(min(st.credit-st.sent, math.MaxInt32))
}

// WriteFrom waits like a Write of n bytes, but nobody need have them meanwhile: read
// returns them when they can be sent. It is given how many these are at most, must not
// block, and may return none. They are not used when WriteFrom has returned.
func (st *Stream) WriteFrom(n int, read func(most int) []byte) (int, error) {
	most, crowded, err := st.begin(n)
	if err != nil {
		return 0, err
	}
	p := read(most)
	s := st.sess
	s.mu.Lock()
	st.sent -= uint64(most - len(p))
	s.mu.Unlock()
	if len(p) == 0 {
		st.write.end()
		return 0, nil
	}
	return st.sendTurn(p, crowded)
}
