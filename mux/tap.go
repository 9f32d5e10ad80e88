package mux

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The frames of smux, version 2, as far as the tap looks at them:
//
//	version (1) | command (1) | length (2) | stream (4) | payload
//
// Integers are little-endian here.
const (
	frameHeader = 8
	smuxVersion = 2

	frameSYN = 0
	frameFIN = 1
	framePSH = 2
	frameNOP = 3
	frameUPD = 4
)

// tap is the link as smux sees it. It watches the frames that smux reads and
// holds the peer to what smux itself does not enforce: who may use which stream
// identifiers, how many streams there are, and that nobody sends more than was
// granted. It runs on smux's receiving goroutine only.
type tap struct {
	sess  *Session
	ready chan struct{} // closed when sess is complete; smux reads earlier
	Link

	header  [frameHeader]byte
	have    int // bytes of header read
	payload int // bytes of payload still to come
}

func (t *tap) Read(p []byte) (int, error) {
	<-t.ready
	n, err := t.Link.Read(p)
	for b := p[:n]; len(b) > 0; {
		if t.payload > 0 {
			k := min(t.payload, len(b))
			t.payload -= k
			b = b[k:]
			continue
		}
		k := copy(t.header[t.have:], b)
		t.have += k
		b = b[k:]
		if t.have == frameHeader {
			t.have = 0
			t.payload = int(binary.LittleEndian.Uint16(t.header[2:]))
			id := binary.LittleEndian.Uint32(t.header[4:])
			if err := t.sess.frame(t.header[1], id, t.payload); err != nil {
				t.sess.end(err, "protocol violation")
				return 0, err
			}
		}
	}
	return n, err
}

// Close lets smux close the session without closing the link: the session does
// that itself, with a reason.
func (t *tap) Close() error { return nil }

// frame is told of each frame before smux handles it.
func (s *Session) frame(command byte, id uint32, length int) error {
	switch command {
	case frameSYN:
		return s.opened(id)
	case framePSH:
		return s.arrived(id, length)
	default: // smux knows them, or ends the session itself
		return nil
	}
}

// opened registers a stream that the peer opens, before its first byte and
// before any record about it.
func (s *Session) opened(id uint32) error {
	if id == 0 || id%2 != s.peerParity {
		return fmt.Errorf("%w: stream %d opened by the wrong end", errProtocol, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == controlID {
		return nil
	}
	if s.streams[id] != nil {
		return fmt.Errorf("%w: stream %d opened twice", errProtocol, id)
	}
	if len(s.streams) >= 2*s.cfg.MaxStreams+64 {
		return fmt.Errorf("%w: %d streams opened, %d allowed", errProtocol, len(s.streams), s.cfg.MaxStreams)
	}
	s.register(newStream(s, id, false))
	return nil
}

// frameCharge is charged for each frame in a stream's buffer beside its bytes,
// since many tiny frames cost more than what they carry.
const frameCharge = 64

// arrived charges a data frame to its stream and to the budgets.
func (s *Session) arrived(id uint32, n int) error {
	if id == controlID || n == 0 {
		return nil
	}
	s.mu.Lock()
	st := s.streams[id]
	if st == nil { // closed here already; smux drops it too
		s.mu.Unlock()
		return nil
	}
	st.received += uint64(n)
	if st.received > st.granted {
		s.mu.Unlock()
		return fmt.Errorf("%w: stream %d sent %d bytes, %d granted", errProtocol, id, st.received, st.granted)
	}
	if st.reset == nil { // else its bytes go as soon as the peer confirms
		if st.charge == 0 {
			st.blockedSince = time.Now()
		}
		s.chargeLocked(st, int64(n+frameCharge))
	}
	s.mu.Unlock()

	for s.held.Load() > s.cfg.Memory && s.resetLongestBlocked() {
	}
	if b := s.cfg.Budget; b != nil && b.used.Load() > b.limit {
		b.relieve()
	}
	return nil
}

// chargeLocked adds n bytes, or gives back -n. Called with mu held.
func (s *Session) chargeLocked(st *Stream, n int64) {
	st.charge += n
	s.held.Add(n)
	if s.cfg.Budget != nil {
		s.cfg.Budget.used.Add(n)
	}
}

// consumed gives back what a reader took from st, and grants its sender more.
func (s *Session) consumed(st *Stream, n int) {
	if n == 0 {
		return
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.consumed += uint64(n)
	st.blockedSince = now
	if st.consumed >= st.received {
		s.chargeLocked(st, -st.charge)
	} else {
		s.chargeLocked(st, -min(int64(n), st.charge))
	}
	if st.finished || st.reset != nil || st.granted-st.consumed > uint64(st.window/2) {
		return
	}
	if st.window < s.cfg.MaxWindow && now.Sub(st.grantedAt) < s.limiting(st.window) && s.spare() {
		st.window = min(2*st.window, s.cfg.MaxWindow)
	}
	st.granted, st.grantedAt = st.consumed+uint64(st.window), now
	s.queueWindow(st)
}

// limiting is the time within which a reader that drains half of a window shows
// that the window is what limits the stream, so that it should grow: two round
// trips, as in QUIC implementations. Up to shortPathWindow it is a millisecond at
// least, since on a busy machine what passes between a grant and its use is
// scheduling, not the path; beyond, on a short path, more in flight only falls
// out of the caches.
func (s *Session) limiting(window int) time.Duration {
	rtt := 2 * s.link.RoundTrip()
	if window < shortPathWindow {
		return max(rtt, time.Millisecond)
	}
	return rtt
}

const shortPathWindow = 2 << 20

// spare says whether at least half of the budgets is free.
func (s *Session) spare() bool {
	b := s.cfg.Budget
	return s.held.Load() < s.cfg.Memory/2 && (b == nil || b.used.Load() < b.limit/2)
}

// stuckBytes is what a stream must hold to be worth a reset, if there is one
// that holds so much.
const stuckBytes = 16 << 10

// resetLongestBlocked resets the stream whose reader has taken nothing for
// longest while bytes wait for it. It says whether there was one.
func (s *Session) resetLongestBlocked() bool {
	s.mu.Lock()
	var victim *Stream
	for _, st := range s.streams {
		if st.charge == 0 || st.reset != nil {
			continue
		}
		if victim == nil || (st.charge >= stuckBytes) != (victim.charge >= stuckBytes) && st.charge >= stuckBytes ||
			(st.charge >= stuckBytes) == (victim.charge >= stuckBytes) && st.blockedSince.Before(victim.blockedSince) {
			victim = st
		}
	}
	if victim == nil {
		s.mu.Unlock()
		return false
	}
	held, since := victim.charge, victim.blockedSince
	s.chargeLocked(victim, -victim.charge)
	s.mu.Unlock()
	s.limitReached("memory", "stream", victim.id, "bytes", held, "blocked", time.Since(since).Round(time.Millisecond))
	victim.Reset(OverBudget, "memory budget exceeded by unread data")
	return true
}
