package mux

import (
	"errors"
	"io"
	"time"
)

// TryWriter is a writer that can also take what it takes without waiting.
type TryWriter interface {
	io.Writer
	// TryWrite writes some of p, and returns no error if it would have to wait
	// for the rest. It must not block, nor write to a stream: nothing is received
	// in the session meanwhile.
	TryWrite(p []byte) (int, error)
}

// sink is who gets what a stream receives. Guarded by Session.mu, except w.
type sink struct {
	w       TryWriter
	done    func(n int64, err error)
	busy    bool // somebody writes to w, without the lock
	written int64
	err     error // of w
}

// Deliver writes what st receives to w, until the end of file or an error, and
// then calls done with how much that was, and with nil or the error: as Read has
// it, or w's. The open reply must have been read before. It does not wait, and
// neither does a goroutine: who receives bytes writes those that w takes at once,
// and one is started for those that it does not. Nothing else may read st. done is
// called once, on a goroutine that the session does not join.
func (st *Stream) Deliver(w TryWriter, done func(n int64, err error)) {
	s := st.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	st.sink = &sink{w: w, done: done}
	st.settleLocked()
}

// settleLocked does for a sink what is to be done when something has changed.
// Called with mu held.
func (st *Stream) settleLocked() {
	k := st.sink
	if k == nil || k.busy {
		return
	}
	err := st.next()
	switch {
	case k.err != nil:
		err = k.err
	case errors.Is(err, errNothing):
		return
	case err == nil:
		k.busy = true
		go st.drain(k)
		return
	case errors.Is(err, io.EOF):
		err = nil
	}
	st.sink = nil
	go k.done(k.written, err)
}

// drain writes what is in the inbox.
func (st *Stream) drain(k *sink) {
	s := st.sess
	s.mu.Lock()
	for k.err == nil && st.next() == nil {
		p := st.inbox.front()
		s.mu.Unlock()
		n, err := k.w.Write(p)
		s.mu.Lock()
		k.written += int64(n)
		k.err = err
		if !st.inbox.empty() { // else it was dropped
			st.inbox.take(n)
		}
		s.consumed(st, n)
		s.unlockAndSend()
		s.mu.Lock()
	}
	k.busy = false
	st.settleLocked()
	s.mu.Unlock()
}

// deliver gives p, which was received for st, to its sink, if that takes it at
// once, and to the inbox otherwise.
func (s *Session) deliver(st *Stream, p []byte) {
	s.mu.Lock()
	if k := st.sink; k != nil && !k.busy && errors.Is(st.next(), errNothing) {
		k.busy = true
		s.mu.Unlock()
		n, err := k.w.TryWrite(p)
		s.mu.Lock()
		k.busy = false
		k.written += int64(n)
		k.err = err
		s.consumed(st, n)
		p = p[n:]
		if err != nil {
			p = nil
		}
	}
	if len(p) > 0 && !st.finished && st.endedLocked() == nil {
		if st.inbox.empty() {
			st.blockedSince = time.Now()
		}
		st.inbox.put(p)
		s.chargeLocked(st)
	}
	st.changed()
	s.mu.Unlock()
	s.relieve()
}

// changed tells who reads st that there may be something, or the end. Called with
// mu held.
func (st *Stream) changed() {
	st.readable.Broadcast()
	st.settleLocked()
}
