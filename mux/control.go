package mux

import (
	"context"
	"math"
	"sync"

	"github.com/xtaci/smux"
)

// control is what waits to be written to the control stream, which is soon. What
// a peer can cause of it without end, by asking for answers that it does not take,
// the link bounds.
type control struct {
	ready   sync.Cond // something to write; on Session.mu
	idle    bool      // everything was written
	records []byte
	windows []*Stream      // that grant their senders more
	closes  []*smux.Stream // that were reset
}

func (s *Session) queueRecord(r record) {
	s.queue.records = r.append(s.queue.records)
	s.queue.ready.Broadcast()
}

// queueWindow has a window told to the peer by whoever unlocks mu, with
// unlockAndSend or at the end of receive.
func (s *Session) queueWindow(st *Stream) {
	if !st.queued && s.err == nil {
		st.queued = true
		s.queue.windows = append(s.queue.windows, st)
	}
}

// queueClose has the smux stream below st, which was reset, closed.
func (s *Session) queueClose(st *Stream) {
	if st.raw != nil {
		s.queue.closes = append(s.queue.closes, st.raw)
		s.queue.ready.Broadcast()
	}
}

// appendRecords queues on the link what is to be written to the control stream.
// Called with mu held.
func (s *Session) appendRecords() {
	q := &s.queue
	for _, st := range q.windows {
		st.queued = false
		if !st.finished {
			q.records = record{kind: recordWindow, id: st.id, bytes: st.granted}.append(q.records)
		}
	}
	q.windows = q.windows[:0]
	for b := q.records; len(b) > 0; {
		n := min(len(b), maxTurn)
		if s.push(controlID, b[:n]) != nil {
			break // the link has ended, and the session will
		}
		b = b[n:]
	}
	q.records = q.records[:0]
}

// unlockAndSend unlocks mu and sends the windows that were granted meanwhile.
func (s *Session) unlockAndSend() {
	send := len(s.queue.windows) > 0
	if send {
		s.appendRecords()
	}
	s.mu.Unlock()
	if send {
		s.link.Send()
	}
}

// writeControl writes what nobody else does to the control stream.
func (s *Session) writeControl() {
	q := &s.queue
	for {
		s.mu.Lock()
		for len(q.records) == 0 && len(q.closes) == 0 && s.err == nil {
			q.idle = true
			q.ready.Broadcast()
			q.ready.Wait()
		}
		if s.err != nil {
			s.mu.Unlock()
			return
		}
		q.idle = false
		s.appendRecords()
		closes := q.closes
		q.closes = nil
		s.mu.Unlock()
		for _, c := range closes {
			c.Close()
		}
		s.link.Send()
	}
}

// drainQueue waits until everything that is queued was handed to the link, but for
// windows: who queues them hands them over, and tells nobody.
func (s *Session) drainQueue(ctx context.Context) {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.queue.ready.Broadcast()
		s.mu.Unlock()
	})()
	q := &s.queue
	s.mu.Lock()
	defer s.mu.Unlock()
	for (!q.idle || len(q.records)+len(q.closes) > 0) && s.err == nil && ctx.Err() == nil {
		q.ready.Wait()
	}
}

// handle processes a record. It never blocks.
func (s *Session) handle(r record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	switch r.kind {
	case recordWindow:
		if st := s.streams[r.id]; st != nil && r.bytes > st.credit {
			st.credit = r.bytes
			st.writable.Broadcast()
		}
	case recordReset:
		// There may be none: it has ended here while the reset was under way.
		if st := s.streams[r.id]; st != nil {
			s.resetLocked(st, &Error{Code: r.code, Reason: clip(r.reason)})
		}
		s.arrivals.remove(r.id)
	case recordMaxStreams:
		s.peerMax = int(min(r.id, math.MaxInt32))
	case recordGoAway:
		select {
		case <-s.peerGone:
		default:
			s.peerWhy = r.reason
			close(s.peerGone)
		}
	case recordNoStreams:
		select {
		case <-s.peerDone:
		default:
			close(s.peerDone)
		}
	case recordListen:
		s.listen(r.id, r.reason)
	case recordUnlisten:
		s.unlisten(r.id)
	case recordListening, recordListenFailed, recordListenEnded:
		s.answered(r)
	}
}

// GoAway tells the peer that this end takes no new streams; those that there
// are go on.
func (s *Session) GoAway(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leaving && s.err == nil {
		s.leaving = true
		s.queueRecord(record{kind: recordGoAway, reason: clip(reason)})
	}
}

// PeerGoingAway is closed when the peer takes no new streams.
func (s *Session) PeerGoingAway() <-chan struct{} { return s.peerGone }

// NoStreams tells the peer that this end has no streams left, and will have none: one of
// the two takes no new ones. What it received has been passed on.
func (s *Session) NoStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done && s.err == nil {
		s.done = true
		s.queueRecord(record{kind: recordNoStreams})
	}
}

// PeerHasNoStreams is closed when the peer has said that.
func (s *Session) PeerHasNoStreams() <-chan struct{} { return s.peerDone }
