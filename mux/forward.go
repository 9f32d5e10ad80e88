package mux

import (
	"context"
	"errors"
)

// Listener is what listens at a server for a client's remote forward.
type Listener interface {
	// Addr is where it listens, "host:port".
	Addr() string
	// Ended gets the reason, once, if it ends by itself.
	Ended() <-chan *Error
	// Close ends it. It may be called after that, too.
	Close()
}

// Forward is a remote forward that the peer, a server, listens for.
type Forward struct {
	Number  uint32        // the target of its streams, in decimal
	Address string        // where the peer listens, "host:port"
	Ended   <-chan *Error // gets the reason if the peer ends it
}

// request is a remote forward that this end, a client, asked for.
type request struct {
	answer chan record // the first one
	ended  chan *Error
}

// Listen asks the peer, a server, to listen at bind, "host:port", and to open a
// [KindForward] stream for each connection. The error is an *[Error], or ctx's.
func (s *Session) Listen(ctx context.Context, bind string) (Forward, error) {
	call := &request{answer: make(chan record, 1), ended: make(chan *Error, 1)}
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return Forward{}, s.lostLocked(s.err)
	}
	s.nextID++
	number := s.nextID
	s.asked[number] = call
	s.queueRecord(record{kind: recordListen, id: number, reason: bind})
	s.mu.Unlock()
	select {
	case r := <-call.answer:
		if r.kind == recordListening {
			return Forward{Number: number, Address: r.reason, Ended: call.ended}, nil
		}
		return Forward{}, &Error{Code: r.code, Reason: clip(r.reason)}
	case <-s.ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		return Forward{}, s.lostLocked(s.err)
	case <-ctx.Done():
		s.Unlisten(number)
		return Forward{}, context.Cause(ctx)
	}
}

// Unlisten ends a forward that Listen made.
func (s *Session) Unlisten(number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[number] != nil {
		delete(s.asked, number)
		s.queueRecord(record{kind: recordUnlisten, id: number})
	}
}

// answered processes what a server says of a forward. Called with mu held.
func (s *Session) answered(r record) {
	call := s.asked[r.id]
	if call == nil { // given up
		return
	}
	if r.kind == recordListenEnded {
		select {
		case call.ended <- &Error{Code: r.code, Reason: clip(r.reason)}:
		default:
		}
	} else {
		select {
		case call.answer <- r:
		default: // answered before
		}
	}
	if r.kind != recordListening {
		delete(s.asked, r.id)
	}
}

// forward is a number at which a server listens for the peer, or is about to. There is a
// goroutine for each, which serves one request after the other, so that none overtakes
// another and each gets one answer.
type forward struct {
	cancel context.CancelFunc // the peer wants it, until this is called
	wanted bool               // it was not
	next   *string            // bind address of a request that came after that
}

// listen serves a peer's request. Called with mu held.
func (s *Session) listen(number uint32, bind string) {
	f := s.forwards[number]
	switch {
	case f == nil && len(s.forwards) >= s.cfg.MaxForwards:
		s.limitReached("forwards of a session", "value", s.cfg.MaxForwards)
		s.answer(number, "", &Error{Code: Limit, Reason: "too many forwards in this session"})
	case f == nil:
		f = new(forward)
		s.forwards[number] = f
		s.begin(number, f, bind)
	case f.wanted || f.next != nil:
		s.answer(number, "", &Error{Code: Protocol, Reason: "the number of the forward is in use"})
	default:
		f.next = &bind
	}
}

// unlisten processes that the peer does not want a listener any more. Called with mu held.
func (s *Session) unlisten(number uint32) {
	f := s.forwards[number]
	switch {
	case f == nil: // it has ended by itself meanwhile
	case f.next != nil:
		f.next = nil
		s.answer(number, "", errWithdrawn)
	case f.wanted:
		f.wanted = false
		f.cancel()
	}
}

// errWithdrawn answers a request that the peer has taken back.
var errWithdrawn = &Error{Code: Cancelled, Reason: "not wanted any more"}

// answer answers a request to listen. Called with mu held.
func (s *Session) answer(number uint32, address string, err error) {
	if err == nil {
		s.queueRecord(record{kind: recordListening, id: number, reason: address})
		return
	}
	r := record{kind: recordListenFailed, id: number, code: CodeOf(err), reason: clip(err.Error())}
	if e, ok := errors.AsType[*Error](err); ok {
		r.reason = e.Reason
	}
	s.queueRecord(r)
}

// begin starts a goroutine that serves a request. Called with mu held.
func (s *Session) begin(number uint32, f *forward, bind string) {
	ctx, cancel := context.WithCancel(s.ctx)
	f.cancel, f.wanted = cancel, true
	s.running.Go(func() {
		defer cancel()
		s.serve(ctx, number, f, bind)
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.next != nil && s.err == nil {
			bind, f.next = *f.next, nil
			s.begin(number, f, bind)
			return
		}
		delete(s.forwards, number)
	})
}

// serve listens for the peer until it does not want that any more, the listener ends, or
// the session does.
func (s *Session) serve(ctx context.Context, number uint32, f *forward, bind string) {
	var l Listener
	err := error(&Error{Code: Denied, Reason: "this end does not listen for others"})
	if s.cfg.Listen != nil {
		l, err = s.cfg.Listen(ctx, number, bind)
	}
	s.mu.Lock()
	if err != nil {
		f.wanted = false
		s.answer(number, "", err)
		s.mu.Unlock()
		return
	}
	defer l.Close()
	if !f.wanted {
		s.answer(number, "", errWithdrawn)
		s.mu.Unlock()
		return
	}
	s.answer(number, l.Addr(), nil)
	s.mu.Unlock()
	select {
	case <-ctx.Done():
	case e := <-l.Ended():
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.wanted {
			f.wanted = false
			s.queueRecord(record{kind: recordListenEnded, id: number, code: e.Code, reason: clip(e.Reason)})
		}
	}
}
