package link

import (
	"context"
	"errors"
	"fmt"
	"math"
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
	// RetryAfter says of an error of Dial how long the server wants to be left
	// alone, 0 if it did not say. nil: always 0.
	RetryAfter func(error) time.Duration
	// Demand, if not nil, says who waits for a carrier: pauses are short then.
	Demand *Demand
	// Attached and Lost, if not nil, are told what happens. Lost also gets
	// the longest time until the next attempt.
	Attached func(resumed bool, c Carrier)
	Lost     func(err error, next time.Duration)

	// ReplaceAfter, if not nil, is asked about each carrier that is attached:
	// how long from now on it may be used before another one is to take its
	// place. 0: as long as it lasts.
	ReplaceAfter func(c Carrier) time.Duration
	// Replaced and NotReplaced, if not nil, are told what comes of that, instead
	// of Attached and Lost. After NotReplaced the old carrier goes on, and
	// another attempt follows.
	Replaced    func(c Carrier)
	NotReplaced func(err error, next time.Duration)
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
// so that the clients of a server that restarts do not come back all at once. No wait
// is longer than a quarter of the time since the carrier was lost, or a second.
// While carriers can be attached but are lost soon, the wait stays below Min·2³, and
// while somebody waits for a carrier (see [Demand]), below a second. A server that
// wants to be left alone for longer (RetryAfter) is. [Link.Wake] ends any wait.
//
// A carrier that is to be replaced goes on until the next one is there. Then both
// ends send what follows on the new one and read the old one to its end, so that
// nothing waits. The next one is there when a message has come on it.
func (l *Link) Maintain(ctx context.Context, r Redial) error {
	defer l.Wait()
	if r.Min <= 0 {
		r.Min = defaultMinBackoff
	}
	if r.Max <= 0 {
		r.Max = defaultMaxBackoff
	}
	began := time.Now()               // of the time without a carrier
	for failures := 0; ; failures++ { // -1: dial at once
		waking := l.waking()
		att, err := l.connect(ctx, r)
		if err == nil {
			if att, err = l.ride(ctx, att, r); err == nil {
				continue // ended; connect says why
			}
			began = time.Now()
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
		case errors.Is(err, errWoken):
			failures = -1
			continue
		case errors.Is(err, ErrGone):
			l.abandon(ErrGone)
			return err
		case r.Fatal != nil && r.Fatal(err):
			return err
		}
		least := r.retryAfter(err)
		pause := max(least, min(r.pause(failures), max(time.Second, time.Since(began)/4)))
		if r.Lost != nil {
			r.Lost(err, pause)
		}
		if l.rest(ctx, waking, r.Demand, pause, least) {
			failures = -1
		}
	}
}

// rest waits until the next attempt is due, or the link ends. It reports whether Wake
// has ended the wait.
func (l *Link) rest(ctx, waking context.Context, demand *Demand, pause, least time.Duration) (woken bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(waking, cancel)()
	defer context.AfterFunc(l.ended, cancel)()
	demand.Pause(ctx, pause, least)
	return waking.Err() != nil
}

func (r Redial) retryAfter(err error) time.Duration {
	if r.RetryAfter == nil {
		return 0
	}
	return r.RetryAfter(err)
}

// pause is how long to wait after so many failures; -1: none, dial at once.
func (r Redial) pause(failures int) time.Duration {
	if failures < 0 {
		return 0
	}
	return rand.N(min(r.Max, r.Min<<min(failures, 20)))
}

var errWoken = errors.New("woken")

// Wake tells Maintain that the network may be another one than before: what it
// waits for may be possible now, and a dial under way may be bound for nowhere.
// It dials at once, again if need be, unless the link has a carrier that goes on.
func (l *Link) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake()
	l.woken, l.wake = context.WithCancel(context.Background())
}

// waking ends with the next Wake.
func (l *Link) waking() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.woken
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
	defer context.AfterFunc(l.waking(), func() { cancel(errWoken) })()

	l.mu.Lock()
	h := hello{
		resume: l.started, secure: r.Secure, beside: l.att != nil,
		id: l.id, received: l.received, maxMessage: uint32(l.cfg.MaxMessage),
	}
	l.dials++
	number := l.dials
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
	t := terms{
		number:       number,
		peerReceived: rep.received,
		maxMessage:   int(min(rep.maxMessage, MaxMessage)),
		checksum:     !(h.secure && rep.secure),
		beside:       h.beside,
		gentle:       h.beside && rep.beside,
	}
	if t.gentle {
		if t.first, err = l.prove(ctx, c, t.checksum, true); err != nil {
			return nil, err
		}
	}
	att, _, err := l.attach(c, t)
	switch {
	case err != nil:
		return nil, err
	case h.beside && r.Replaced != nil:
		r.Replaced(c)
	case !h.beside && r.Attached != nil:
		r.Attached(h.resume, c)
	}
	return att, nil
}

// ride waits for the end of an attachment, and of those that replace it. It returns
// the last one and why that ended.
func (l *Link) ride(ctx context.Context, att *attachment, r Redial) (*attachment, error) {
	waking := l.waking()
	due := time.NewTimer(r.replaceAfter(att))
	defer due.Stop()
	for failures := 0; ; failures++ {
		select {
		case <-att.lost:
			l.mu.Lock()
			defer l.mu.Unlock()
			return att, att.err
		case <-ctx.Done():
			return att, context.Cause(ctx)
		case <-waking.Done(): // on another network a carrier may be good for another time
			waking, failures = l.waking(), -1
			due.Reset(r.replaceAfter(att))
			continue
		case <-due.C:
		}
		next, err := l.replace(ctx, att, r)
		if err == nil {
			att, failures = next, -1
			due.Reset(r.replaceAfter(att))
			continue
		}
		if errors.Is(err, errWoken) {
			failures = -1
		}
		pause := max(r.pause(failures), r.retryAfter(err))
		due.Reset(pause)
		if r.NotReplaced != nil && !att.over() {
			r.NotReplaced(err, pause)
		}
	}
}

func (r Redial) replaceAfter(att *attachment) time.Duration {
	if r.ReplaceAfter != nil {
		if after := r.ReplaceAfter(att.carrier); after > 0 {
			return after
		}
	}
	return math.MaxInt64
}

// replace dials the carrier after att while that goes on, and gives up when that is
// lost: the next dial then need not be gentle.
func (l *Link) replace(ctx context.Context, att *attachment, r Redial) (*attachment, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-att.lost:
			cancel(att.err)
		case <-ctx.Done():
		}
	}()
	l.awaitLeft(ctx) // the carrier before att may still bring what comes before
	return l.connect(ctx, r)
}

// over says whether the link no longer rides on att.
func (att *attachment) over() bool {
	select {
	case <-att.lost:
		return true
	default:
		return false
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
