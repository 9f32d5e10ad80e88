package mux

import "math"

// Room is how many bytes of a Write would not wait, neither for the peer's window nor
// for the link nor for other streams; 0: all would. When the stream has ended it is more
// than that, since a Write says why.
func (st *Stream) Room() int {
	s := st.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.writeErrorLocked() != nil:
		return math.MaxInt32
	case st.credit <= st.sent || !s.turns.nobody() || s.link.Full():
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
