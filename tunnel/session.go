package tunnel

import (
	"context"
	"errors"
	"sync"
	"time"

	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/link"
)

// session is what is needed to open streams on a *mux.Session.
type session interface {
	Open(ctx context.Context, h mux.Header) (stream, error)
}

// sessionOf is a *mux.Session with its streams as this package sees them.
type sessionOf struct{ *mux.Session }

func (s sessionOf) Open(ctx context.Context, h mux.Header) (stream, error) {
	st, err := s.Session.Open(ctx, h)
	if err != nil {
		return nil, err
	}
	return st, nil
}

var _ stream = (*mux.Stream)(nil)

// lost says of an error of Open that the session takes no new streams any more,
// so that another one may be waited for.
func lost(err error) bool {
	return errors.Is(err, mux.ErrGoingAway) || mux.CodeOf(err) == mux.SessionLost
}

// closeFlush bounds how long the end of a session waits for its last bytes.
const closeFlush = time.Second

// drainCheck is how often a session that ends is looked at.
const drainCheck = 10 * time.Millisecond

// drain waits, until ctx ends, for the streams of a session that takes no new
// ones. Each end alone knows when it has passed on what it received, so each says
// when it has no streams left. An end that was told that the other takes no new
// streams leaves closing to the other; an end that told closes when neither has any.
func drain(ctx context.Context, s *mux.Session, l *link.Link, told bool) {
	check := time.NewTicker(drainCheck)
	defer check.Stop()
	for {
		if s.NumStreams() == 0 {
			if !l.Attached() { // nobody is there to wait for
				return
			}
			s.NoStreams()
			select {
			case <-s.PeerHasNoStreams():
				if !told {
					return
				}
			default:
			}
		}
		select {
		case <-s.Done():
			return
		case <-ctx.Done():
			return
		case <-check.C:
		}
	}
}

// closeSession ends a session after what was written to it, if there is a
// carrier for that.
func closeSession(s *mux.Session, l *link.Link, reason string) {
	flush := closeFlush
	if !l.Attached() {
		flush = 0
	}
	s.Close(reason, flush)
}

// acceptStreams hands each stream that the peer opens to handle, on a goroutine
// of its own, until the session has ended; then it waits for them. What handle
// returns, if anything, runs on another, so that what a dial needs of stack is
// not kept while the stream lives. Each handle takes one of the places in opening, so that
// no more than there are run at once; nil sets no limit.
func acceptStreams(s *mux.Session, opening chan struct{}, handle func(stream) (relaying func())) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		st, err := s.Accept(context.Background())
		if err != nil {
			return
		}
		if opening != nil {
			opening <- struct{}{} // each dial ends in time
		}
		streams.Go(func() {
			relaying := handle(st)
			if opening != nil {
				<-opening
			}
			if relaying != nil {
				streams.Go(relaying)
			}
		})
	}
}

// sessionEnded logs the end of a session, and why this end let it end, or else
// what ended it.
func (e events) sessionEnded(s *mux.Session, reason string) {
	err := s.Err()
	switch {
	case errors.Is(err, link.ErrExpired), errors.Is(err, link.ErrGone):
		e.Info("session expired", keyReason, err)
	case reason != "":
		e.Info("session closed", keyReason, reason)
	default:
		e.Info("session closed", keyReason, err)
	}
}

// resetSize is about what it takes to reset a stream, in bytes.
const resetSize = 128

func (s Settings) link() link.Config {
	return link.Config{ResumeWindow: s.ResumeWindow, ReplayBuffer: s.ReplayBuffer, MaxMessage: s.MaxMessage, MaxOverrun: max(link.DefaultMaxOverrun, resetSize*s.MaxStreams), Logger: s.Logger}
}

func (s Settings) mux(budget *mux.Budget) mux.Config {
	return mux.Config{
		MaxStreams: s.MaxStreams, MaxForwards: 2 * s.MaxForwards, OpenTimeout: s.OpenTimeout, Memory: int64(s.SessionMemory), Budget: budget,
		Logger: s.Logger,
	}
}

func (s Settings) carrier() carrier.Options {
	return carrier.Options{Heartbeat: s.Heartbeat, HeartbeatTimeout: s.HeartbeatTimeout}
}
