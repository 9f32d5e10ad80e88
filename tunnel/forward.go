package tunnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"culvert/mux"
	"culvert/mux/carrier/reserve"
	"culvert/tunnel/gate"
)

// forwarder accepts connections and carries each over a stream of its own.
// Local forwards and the server's end of remote ones are forwarders.
type forwarder struct {
	listener net.Listener
	target   string // for logs
	// open waits, until ctx ends, for a session and opens a stream on it for a
	// connection from this address. It returns the session's name for logs too.
	open        func(ctx context.Context, from net.Addr) (st stream, session string, err error)
	closed      func(st stream) // called when a stream that open returned has ended; nil: nothing
	connectWait time.Duration   // for open and the reply together,
	openTimeout time.Duration   // but at least this for the reply
	pending     chan struct{}   // one element for each connection without a reply
	log         events
	told        func() bool // whether the log is told of one more connection that is not served; nil: always
}

// run accepts until ctx ends, then closes the listener and returns; it does not
// wait for the connections, which are added to conns. What is accepted is held
// back while too many connections wait for their reply, and an accept that
// fails, for want of file descriptors say, is tried again.
func (f *forwarder) run(ctx context.Context, conns *sync.WaitGroup) {
	stop := context.AfterFunc(ctx, func() { f.listener.Close() })
	defer stop()
	defer f.listener.Close()
	failed := every{interval: 10 * time.Second}
	full := every{interval: 10 * time.Second}
	var pause backoff
	for {
		select {
		case f.pending <- struct{}{}:
		default:
			if full.now() {
				f.log.Warn("limit reached", keyLimit, "pending connections", keyTarget, f.target)
			}
			select {
			case f.pending <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
		conn, err := f.listener.Accept()
		if err == nil {
			if err = reserve.Check(conn); err != nil {
				abort(conn)
			}
		}
		if err == nil {
			pause.reset()
			conns.Go(func() {
				if relaying := f.carry(ctx, conn); relaying != nil {
					conns.Go(relaying) // with a small stack
				}
			})
			continue
		}
		<-f.pending
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		wait := pause.next(5*time.Millisecond, time.Second)
		if failed.now() {
			f.log.Warn("accept failed", keyError, err, keyNext, wait)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// runAll is run for each of the listeners, which share what bounds the forward. turn gives
// each loop its use of a listener.
func (f *forwarder) runAll(ctx context.Context, listeners []bound, turn func(*net.TCPListener) net.Listener, conns *sync.WaitGroup) {
	var loops sync.WaitGroup
	for _, b := range listeners {
		one := *f
		one.listener = turn(b.TCPListener)
		loops.Go(func() { one.run(ctx, conns) })
	}
	loops.Wait()
}

// carry opens a stream for conn and returns what relays between them, nil if it
// could not. The connection waits for a session no longer than ctx; a stream once
// opened is not bound by ctx. It counts as pending until the fate of the open is
// known.
func (f *forwarder) carry(ctx context.Context, conn net.Conn) (relaying func()) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetKeepAliveConfig(gate.KeepAlive)
	}
	limit := time.Now().Add(f.connectWait)
	wait, cancel := context.WithDeadline(ctx, limit)
	st, session, err := f.open(wait, conn.RemoteAddr())
	cancel()
	if err != nil {
		<-f.pending
		abort(conn)
		code, why := verdict(err, mux.TimedOut)
		if f.told == nil || f.told() {
			f.log.Warn("target refused", keyTarget, f.target, keyRemote, conn.RemoteAddr().String(), keyCode, code, keyReason, why)
		}
		return nil
	}
	if t := time.Now().Add(f.openTimeout); t.After(limit) {
		limit = t
	}
	return func() { f.relay(conn, st, session, limit) }
}

// relay relays between conn and st, whose reply must have come until limit.
func (f *forwarder) relay(conn net.Conn, st stream, session string, limit time.Time) {
	if f.closed != nil {
		defer f.closed(st)
	}
	reply, cancel := context.WithDeadline(context.Background(), limit)
	r := &relay{conn: conn, stream: st, replied: make(chan struct{}), onReply: func() { cancel(); <-f.pending }}
	r.onServed = func() { f.log.streamOpened(r, session, f.target) }
	err := r.run(reply)
	switch code, why := verdict(err, mux.OK); code {
	case mux.OK:
		f.log.streamClosed(r, session, f.target)
	case mux.Cancelled:
		f.log.Debug("connection left before the open reply", keySession, session, keyStream, st.ID(), keyTarget, f.target)
	default:
		if f.told == nil || f.told() {
			f.log.Warn("target refused", keySession, session, keyStream, st.ID(), keyTarget, f.target,
				keyRemote, conn.RemoteAddr().String(), keyCode, code, keyReason, why)
		}
	}
}

// backoff grows from attempt to attempt, with full jitter.
type backoff struct{ attempts int }

func (b *backoff) reset() { b.attempts = 0 }

func (b *backoff) next(first, most time.Duration) time.Duration {
	top := most
	if b.attempts < 30 {
		top = min(most, first<<b.attempts)
	}
	b.attempts++
	return jitter(top)
}

// jitter is a random duration up to d, and never so short that a loop spins.
func jitter(d time.Duration) time.Duration {
	return d/10 + rand.N(d-d/10+1)
}

// sleep waits for d and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
