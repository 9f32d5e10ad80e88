package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// The frames of smux, version 2, as far as this package looks at them:
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

// demux splits what the link receives into frames. What they carry goes to their
// streams, and to the control stream, without smux in between: what it would do
// with each, a copy and a hand-over to another goroutine, costs more than the
// rest. smux is given the other frames, which open and close streams.
//
// It holds the peer to what smux does not enforce: who may use which stream
// identifiers, how many streams there are, and that nobody sends more than was
// granted. It runs on the link's receiving goroutine only.
type demux struct {
	header  [frameHeader]byte
	have    int     // bytes of header received
	payload int     // bytes of payload still to come
	to      *Stream // that they are for; nil: see next
	next    destination
	control bool   // the control stream is open
	records []byte // the beginning of a record
	broken  bool   // the session ends because of what the peer sent
}

// destination of a payload that is not a stream's.
type destination int

const (
	toNobody destination = iota
	toControl
	toSmux
)

// receive takes what the link has received.
func (s *Session) receive(p []byte) {
	d := &s.demux
	for len(p) > 0 && !d.broken {
		var err error
		if d.payload > 0 {
			k := min(d.payload, len(p))
			d.payload -= k
			err = s.body(p[:k])
			p = p[k:]
		} else {
			k := copy(d.header[d.have:], p)
			d.have += k
			p = p[k:]
			if d.have == frameHeader {
				d.have = 0
				err = s.frame(d.header[:])
			}
		}
		if err != nil {
			d.broken = true
			s.spawn(func() { s.end(err, "protocol violation") }) // which waits for our return
		}
	}
	s.mu.Lock()
	s.appendRecords() // the link sends them with its acknowledgement
	s.mu.Unlock()
}

// frame is given the header of each frame.
func (s *Session) frame(header []byte) error {
	d := &s.demux
	id := binary.LittleEndian.Uint32(header[4:])
	d.payload = int(binary.LittleEndian.Uint16(header[2:]))
	d.to, d.next = nil, toSmux
	var err error
	switch {
	case header[0] != smuxVersion:
		return fmt.Errorf("%w: version %d", errProtocol, header[0])
	case header[1] == framePSH && id == controlID:
		if d.next = toControl; !d.control && !s.client {
			return fmt.Errorf("%w: no control stream", errProtocol)
		}
		return nil
	case header[1] == framePSH:
		d.next = toNobody
		d.to, err = s.arriving(id, d.payload)
		return err
	case header[1] == frameSYN:
		err = s.opened(id)
	case header[1] == frameFIN && id == controlID:
		return fmt.Errorf("%w: control stream closed", errProtocol)
	case header[1] == frameFIN:
		s.closed(id)
	}
	if err != nil {
		return err
	}
	return s.frames.put(header) // smux knows the others, or ends the session itself
}

// body is given what follows a header, in pieces.
func (s *Session) body(p []byte) error {
	d := &s.demux
	switch {
	case d.to != nil:
		s.deliver(d.to, p)
		return nil
	case d.next == toSmux:
		return s.frames.put(p)
	case d.next == toNobody:
		return nil
	}
	d.records = append(d.records, p...)
	left := d.records
	for {
		r, rest, err := readRecord(left)
		if err != nil {
			return err
		}
		if rest == nil {
			d.records = d.records[:copy(d.records, left)]
			return nil
		}
		s.handle(r)
		left = rest
	}
}

// smuxConn is the connection as smux sees it.
type smuxConn struct {
	link Link

	mu      sync.Mutex
	changed sync.Cond
	frames  []byte // for smux to read
	ended   bool
}

// maxFrames bounds the bytes that wait for smux, which never waits for long.
const maxFrames = 64 << 10

func newSmuxConn(l Link) *smuxConn {
	c := &smuxConn{link: l}
	c.changed.L = &c.mu
	return c
}

// put has smux read p.
func (c *smuxConn) put(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.frames) >= maxFrames && !c.ended {
		c.changed.Wait()
	}
	if c.ended { // nobody reads them
		return nil
	}
	c.frames = append(c.frames, p...)
	c.changed.Broadcast()
	return nil
}

// Read gives smux the frames that are its own.
func (c *smuxConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.frames) == 0 && !c.ended {
		c.changed.Wait()
	}
	if c.ended {
		return 0, io.EOF
	}
	n := copy(p, c.frames)
	c.frames = c.frames[:copy(c.frames, c.frames[n:])]
	c.changed.Broadcast()
	return n, nil
}

// Write is not used by smux, which has WriteBuffers.
func (c *smuxConn) Write(p []byte) (int, error) { return c.WriteBuffers([][]byte{p}) }

// WriteBuffers queues a frame of smux's own. Who caused it sends it.
func (c *smuxConn) WriteBuffers(v [][]byte) (n int, err error) {
	for _, p := range v {
		n += len(p)
	}
	return n, c.link.Append(v)
}

// Close ends smux's reading, and not the link: the session does that itself, with
// a reason.
func (c *smuxConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.changed.Broadcast()
	return nil
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
		s.demux.control = true
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

// closed notes that the peer sends no more on a stream.
func (s *Session) closed(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil {
		st.ended = true
		st.changed()
	}
}

// arriving notes that n bytes come for a stream, and returns it, or nil if there
// is nobody to have them.
func (s *Session) arriving(id uint32, n int) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil { // closed here already
		return nil, nil
	}
	if st.received += uint64(n); st.received > st.granted {
		return nil, fmt.Errorf("%w: stream %d sent %d bytes, %d granted", errProtocol, id, st.received, st.granted)
	}
	if st.reset != nil || st.ended {
		return nil, nil
	}
	return st, nil
}

// relieve resets streams while more is received and unread than the budgets allow.
func (s *Session) relieve() {
	for s.held.Load() > s.cfg.Memory && s.resetLongestBlocked() {
	}
	s.cfg.Budget.relieve()
}

// chargeLocked has the budgets know what st holds. Called with mu held.
func (s *Session) chargeLocked(st *Stream) {
	held := st.inbox.held
	n := held - st.charge
	st.charge = held
	s.held.Add(n)
	s.cfg.Budget.charge(n)
}

// consumed notes that n bytes were taken from st, and grants its sender more.
// Called with mu held.
func (s *Session) consumed(st *Stream, n int) {
	if n == 0 {
		return
	}
	now := time.Now()
	st.consumed += uint64(n)
	st.blockedSince = now
	s.chargeLocked(st)
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
	return s.held.Load() < s.cfg.Memory/2 && s.cfg.Budget.spare()
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
	s.mu.Unlock()
	s.limitReached("memory", "stream", victim.id, "bytes", held, "blocked", time.Since(since).Round(time.Millisecond))
	victim.Reset(OverBudget, "memory budget exceeded by unread data")
	return true
}
