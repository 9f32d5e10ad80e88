package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Dial opens a carrier: it sends hello with the upgrade request and returns the
// answer that came with the response. A refusal that says the session is
// unknown must wrap [ErrGone].
type Dial func(ctx context.Context, hello []byte) (c Carrier, reply []byte, err error)

// Redial says how [Link.Maintain] gets carriers.
type Redial struct {
	Dial   Dial
	Secure bool // the carriers are under TLS at this end

	Min, Max time.Duration // bounds of the back-off; 100 ms and 30 s
	// Fatal says of an error of Dial that trying again will not help. nil:
	// always try again.
	Fatal func(error) bool
	// Attached and Lost, if not nil, are told what happens. Lost also gets
	// the time until the next attempt.
	Attached func(resumed bool, c Carrier)
	Lost     func(err error, next time.Duration)
}

const (
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second
)

// Maintain gives the link a carrier, and another one whenever the last was
// lost, until ctx ends or the link does. It returns why: ctx's error, the
// link's ([ErrGone], [ErrExpired], [ErrClosed], a [*ClosedByPeerError]), or the
// error of a dial that Fatal recognised. When ctx ends it closes neither the link
// nor its carrier, and waits until either has ended.
//
// The first attempt after a carrier that carried anything is made at once. The
// n-th after that waits a random time up to Min·2ⁿ, at most Max ("full jitter"),
// so that the clients of a server that restarts do not come back all at once.
// While carriers can be attached but are lost soon, the wait stays below Min·2³.
func (l *Link) Maintain(ctx context.Context, r Redial) error {
	defer l.Wait()
	if r.Min <= 0 {
		r.Min = defaultMinBackoff
	}
	if r.Max <= 0 {
		r.Max = defaultMaxBackoff
	}
	for failures := 0; ; failures++ { // -1: dial at once
		att, err := l.connect(ctx, r)
		if err == nil {
			if err = l.ride(ctx, att); err == nil {
				continue // ended; connect says why
			}
			if l.worked(att) {
				failures = -1
			} else {
				failures = min(failures, attachedFailures)
			}
		}
		switch {
		case l.Err() != nil:
			return l.Err()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrGone):
			l.abandon(ErrGone)
			return err
		case r.Fatal != nil && r.Fatal(err):
			return err
		}
		var pause time.Duration
		if failures >= 0 {
			pause = rand.N(min(r.Max, r.Min<<min(failures, 20)))
		}
		if r.Lost != nil {
			r.Lost(err, pause)
		}
		select {
		case <-time.After(pause):
		case <-l.Done():
		case <-ctx.Done():
		}
	}
}

// connect dials one carrier and attaches it.
func (l *Link) connect(ctx context.Context, r Redial) (*attachment, error) {
	if err := l.Err(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A link that ends also ends its handshake.
	defer context.AfterFunc(l.ended, func() { cancel(l.Err()) })()

	l.mu.Lock()
	h := hello{resume: l.started, secure: r.Secure, id: l.id, received: l.received, maxMessage: uint32(l.cfg.MaxMessage)}
	l.mu.Unlock()
	c, b, err := r.Dial(ctx, h.encode())
	if err != nil {
		return nil, err
	}
	rep, err := decodeReply(b)
	if err == nil && h.resume && !rep.resumed {
		err = fmt.Errorf("%w: a new session instead of the old one", ErrProtocol)
	}
	if err != nil {
		c.Abort(err)
		return nil, err
	}
	if rep.window > 0 {
		l.mu.Lock()
		l.window = min(l.cfg.ResumeWindow, rep.window)
		l.mu.Unlock()
	}
	att, err := l.attach(c, terms{
		peerReceived: rep.received,
		maxMessage:   int(min(rep.maxMessage, MaxMessage)),
		checksum:     !(h.secure && rep.secure),
	})
	if err == nil && r.Attached != nil {
		r.Attached(h.resume, c)
	}
	return att, err
}

// ride waits for the end of an attachment and says why it ended.
func (l *Link) ride(ctx context.Context, att *attachment) error {
	select {
	case <-att.lost:
		l.mu.Lock()
		defer l.mu.Unlock()
		return att.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const (
	// settledAfter is how long a carrier must last to count as a success
	// although it carried nothing.
	settledAfter = 5 * time.Second
	// attachedFailures is as many failures as carriers that were attached and
	// lost soon can count for: the server is there, and who opens a stream
	// must not wait for the whole of Max.
	attachedFailures = 3
)

// worked says whether an attachment was good for anything, so that the next
// dial need not wait.
func (l *Link) worked(att *attachment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return att.progress || time.Since(att.since) >= settledAfter
}
