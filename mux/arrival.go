package mux

import (
	"time"
)

// arrival is a stream that the peer has opened and whose header is not complete. It costs
// so little that it does not count for a budget, and there are few.
type arrival struct {
	id     uint32
	since  time.Time
	header []byte // as far as it has come
}

// maxArrivals is how many streams of a session may be without their header. An opener
// sends the header with the stream, so one is the most that is seen.
const maxArrivals = 64

// noHeader and tooManyStreams are why streams are reset.
const (
	noHeader       = "no valid header"
	tooManyStreams = "too many streams in this session"
)

// arrivals are those of a session. Guarded by Session.mu.
type arrivals struct {
	of    map[uint32]*arrival
	timer *patience // runs while there are any, from the end of what was received
}

func (as *arrivals) add(id uint32) {
	if as.of == nil {
		as.of = make(map[uint32]*arrival)
	}
	as.of[id] = &arrival{id: id, since: time.Now()}
}

func (as *arrivals) remove(id uint32) { delete(as.of, id) }

// watch has those reset in time whose header does not come. Called with Session.mu held.
func (as *arrivals) watch(s *Session) {
	if len(as.of) > 0 && as.timer == nil && s.err == nil {
		as.timer = s.after(s.cfg.OpenTimeout, s.tooLate)
	}
}

// tooLate resets the streams whose header has not come in time.
func (s *Session) tooLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	as := &s.arrivals
	as.timer = nil
	for id, a := range as.of {
		if time.Since(a.since) >= s.cfg.OpenTimeout {
			s.log.Debug("stream without a valid header", "stream", id, "error", "no header in time")
			as.remove(id)
			s.refuse(id, TimedOut, "no header in time")
		}
	}
	as.watch(s)
}

// take appends what of p belongs to the header and returns it if it is complete, and what
// follows it, which is not nil then.
func (a *arrival) take(p []byte) (h Header, rest []byte, err error) {
	if len(a.header) == 0 { // mostly the whole header is there
		if h, rest, err = readHeader(p); rest != nil || err != nil {
			return h, rest, err
		}
	}
	for len(p) > 0 {
		n := min(headerSize(a.header)-len(a.header), len(p))
		a.header = append(a.header, p[:n]...)
		p = p[n:]
		h, rest, err = readHeader(a.header)
		if err != nil {
			return h, nil, err
		}
		if rest != nil {
			return h, p, nil
		}
	}
	return h, nil, nil
}

// greet is given bytes for a stream without a header. With the last byte of the header the
// stream is handed out, and what follows is delivered to it.
func (s *Session) greet(a *arrival, p []byte) {
	d := &s.demux
	h, rest, err := a.take(p)
	if err == nil && rest == nil {
		return
	}
	d.arrival = nil
	s.mu.Lock()
	if s.arrivals.of[a.id] != a { // too late
		s.mu.Unlock()
		return
	}
	s.arrivals.remove(a.id)
	if err != nil {
		s.log.Debug("stream without a valid header", "stream", a.id, "error", err)
		s.refuse(a.id, Protocol, noHeader)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	admitted := s.cfg.Budget.admit(s) // which may reset streams, of this session too
	s.mu.Lock()
	switch {
	case s.err != nil:
		s.mu.Unlock()
		return
	case !admitted:
		s.refuse(a.id, OverBudget, "memory budget exceeded by streams")
		s.mu.Unlock()
		s.limitReached("memory", "streams", s.NumStreams())
		return
	}
	st := newStream(s, a.id, false)
	st.header = h
	size := uint64(len(h.Target)) + minHeader
	st.consumed = size
	st.received = size + uint64(len(rest)+d.payload)
	s.register(st)
	s.mu.Unlock()
	s.frames.put(frameSYN, a.id)
	d.to = st
	if len(rest) > 0 {
		s.deliver(st, rest)
	}
}
