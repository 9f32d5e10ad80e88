package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
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
// rest. smux is given the other frames, which open and close streams. It learns of a
// stream when its header is complete: until then the stream is an [arrival].
//
// It holds the peer to what smux does not enforce: who may use which stream
// identifiers, how many streams there are, and that nobody sends more than was
// granted. It runs on the link's receiving goroutine only.
type demux struct {
	header  [frameHeader]byte
	have    int      // bytes of header received
	payload int      // bytes of payload still to come
	to      *Stream  // that they are for; nil: see arrival
	arrival *arrival // that they are for; nil: see next
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
)

// yieldEvery is after how many frames of a message other goroutines have their turn: a
// peer that fills messages with tiny frames should keep nobody else waiting.
const yieldEvery = 64

// receive takes what the link has received.
func (s *Session) receive(p []byte) {
	d := &s.demux
	for frames := 0; len(p) > 0 && !d.broken; {
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
				if frames++; frames%yieldEvery == 0 {
					runtime.Gosched()
				}
			}
		}
		if err != nil {
			d.broken = true
			s.spawn(func() { s.end(err, err.Error()) }) // which waits for our return
		}
	}
	s.mu.Lock()
	s.arrivals.watch(s)
	s.appendRecords() // the link sends them with its acknowledgement
	s.mu.Unlock()
}

// frame is given the header of each frame.
func (s *Session) frame(header []byte) error {
	d := &s.demux
	id := binary.LittleEndian.Uint32(header[4:])
	d.payload = int(binary.LittleEndian.Uint16(header[2:]))
	d.to, d.arrival, d.next = nil, nil, toNobody
	if header[0] != smuxVersion {
		return fmt.Errorf("%w: version %d", errProtocol, header[0])
	}
	switch command := header[1]; command {
	case framePSH:
		if id != controlID {
			return s.arriving(id, d.payload)
		}
		if d.next = toControl; !d.control && !s.client {
			return fmt.Errorf("%w: no control stream", errProtocol)
		}
		return nil
	case frameSYN, frameFIN:
		if d.payload > 0 {
			return fmt.Errorf("%w: frame of command %d with %d bytes", errProtocol, command, d.payload)
		}
		if command == frameSYN {
			return s.opened(id)
		}
		return s.closed(id)
	case frameNOP, frameUPD: // nobody needs them, nor what they carry
		return nil
	default:
		return fmt.Errorf("%w: command %d", errProtocol, command)
	}
}

// body is given what follows a header, in pieces.
func (s *Session) body(p []byte) error {
	d := &s.demux
	switch {
	case d.to != nil:
		s.deliver(d.to, p)
		return nil
	case d.arrival != nil:
		s.greet(d.arrival, p)
		return nil
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

// put has smux read a frame without a payload. It waits for smux, and must not be called
// with Session.mu held.
func (c *smuxConn) put(command byte, id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.frames) >= maxFrames && !c.ended {
		c.changed.Wait()
	}
	if c.ended { // nobody reads them
		return
	}
	c.frames = append(c.frames, smuxVersion, command, 0, 0)
	c.frames = binary.LittleEndian.AppendUint32(c.frames, id)
	c.changed.Broadcast()
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

// opened notes that the peer opens a stream, before its first byte and before any record
// about it. One that cannot be is reset, which leaves nothing behind: what follows for it
// goes to nobody.
func (s *Session) opened(id uint32) error {
	d := &s.demux
	switch {
	case id == 0 || id%2 != s.peerParity:
		return fmt.Errorf("%w: stream %d opened by the wrong end", errProtocol, id)
	case id == controlID && !d.control:
		d.control = true
		s.late.Stop()
		s.frames.put(frameSYN, id)
		return nil
	case id == controlID:
		return fmt.Errorf("%w: stream %d opened twice", errProtocol, id)
	case !d.control && !s.client:
		return fmt.Errorf("%w: first stream is %d", errProtocol, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[id] != nil || s.arrivals.of[id] != nil {
		return fmt.Errorf("%w: stream %d opened twice", errProtocol, id)
	}
	switch {
	case s.err != nil:
	case s.leaving:
		s.refuse(id, Stopping, "shutting down")
	case s.theirs+len(s.arrivals.of) >= s.cfg.MaxStreams:
		s.limitReached("max_streams", "value", s.cfg.MaxStreams)
		s.refuse(id, Limit, tooManyStreams)
	case len(s.arrivals.of) >= maxArrivals:
		s.limitReached("streams without a header", "value", maxArrivals)
		s.refuse(id, Limit, "too many streams without a header")
	default:
		s.arrivals.add(id)
	}
	return nil
}

// refuse resets a stream of the peer of which this end knows nothing. Called with mu held.
func (s *Session) refuse(id uint32, code Code, reason string) {
	s.queueRecord(record{kind: recordReset, id: id, code: code, reason: reason})
}

// closed notes that the peer sends no more on a stream.
func (s *Session) closed(id uint32) error {
	if id == controlID {
		return fmt.Errorf("%w: control stream closed", errProtocol)
	}
	s.mu.Lock()
	if s.arrivals.of[id] != nil {
		s.arrivals.remove(id)
		s.refuse(id, Protocol, noHeader)
	}
	st := s.streams[id]
	if st != nil {
		st.ended = true
		s.countLocked(st)
		st.changed()
	}
	s.mu.Unlock()
	if st != nil {
		s.frames.put(frameFIN, id)
	}
	return nil
}

// arriving finds out for whom n bytes are that come for a stream. There may be nobody: it
// has ended here already.
func (s *Session) arriving(id uint32, n int) error {
	d := &s.demux
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.arrival = s.arrivals.of[id]; d.arrival != nil {
		return nil
	}
	st := s.streams[id]
	if st == nil {
		return nil
	}
	if st.received += uint64(n); st.received > st.granted {
		return fmt.Errorf("%w: stream %d sent %d bytes, %d granted", errProtocol, id, st.received, st.granted)
	}
	if !st.ended {
		d.to = st
	}
	return nil
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
	s.charged.Add(n)
	s.cfg.Budget.Charge(n)
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
	return s.held.Load() < s.cfg.Memory/2 && s.cfg.Budget.Spare()
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

// resetLongestIdle resets the stream that has moved nothing for longest. It says whether
// there was one.
func (s *Session) resetLongestIdle() bool {
	s.mu.Lock()
	var victim *Stream
	var since time.Time
	for _, st := range s.streams {
		moved := st.blockedSince
		if st.sentAt.After(moved) {
			moved = st.sentAt
		}
		if victim == nil || moved.Before(since) {
			victim, since = st, moved
		}
	}
	s.mu.Unlock()
	if victim == nil {
		return false
	}
	s.limitReached("memory", "stream", victim.id, "idle", time.Since(since).Round(time.Millisecond))
	victim.Reset(OverBudget, "memory budget exceeded by streams")
	return true
}
