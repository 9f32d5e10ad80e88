package mux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"
)

// Link is what a session needs of the byte stream below it; *link.Link is one.
type Link interface {
	// Handle says whom to give what is received, and whom to tell that a link
	// that was found full has room.
	Handle(receive func(p []byte), room func())
	// Append queues what is to be sent, and Send sends it, as soon as there is
	// a carrier. Neither waits. Full says that who writes should.
	Append(v [][]byte) error
	Send()
	Full() bool
	// Account has a budget know of what the link keeps to send it again.
	Account(m Memory)
	// Flush waits until all was acknowledged, or stop is closed.
	Flush(stop <-chan struct{}) error
	// Close ends the link and tells the peer why.
	Close(reason string) error
	// AttachedFor is how long it has had its present carrier, 0 without one.
	AttachedFor() time.Duration
	// Done is closed when the link has ended, Err says why.
	Done() <-chan struct{}
	Err() error
	// RoundTrip and Bandwidth, in bytes per second, are measured on the path;
	// 0 while unknown.
	RoundTrip() time.Duration
	Bandwidth() float64
}

// Memory is what a link tells of the bytes that it keeps; a *[Budget] is one.
type Memory = interface {
	Charge(n int64)
	Spare() bool
}

// Config of a session. Zero values mean the defaults.
type Config struct {
	// MaxStreams bounds the streams of each end that are open at once. The peer is
	// told, and what it opens beyond is reset. 16,384.
	MaxStreams int
	// MaxForwards bounds the listeners that the peer may have, those included that
	// are being made or ended. 128.
	MaxForwards int
	// OpenTimeout bounds the time until a stream's header has arrived, and
	// until the control stream has. It runs only while there is a carrier. 10 s.
	OpenTimeout time.Duration
	// MaxWindow bounds the bytes that one stream may hold unread, to which its
	// window grows from 256 KiB. 16 MiB.
	MaxWindow int
	// Memory bounds the bytes received and unread in the session. 64 MiB.
	Memory int64
	// Budget bounds what several sessions take of memory; nil sets no limit.
	Budget *Budget
	// Listen is called when the peer asks to listen at bind, "host:port". The
	// error's *Error, or Internal, is told to the peer. nil refuses. It runs on a
	// goroutine of its own; ctx ends with the session, or when the peer does not
	// want the listener any more.
	Listen func(ctx context.Context, forward uint32, bind string) (Listener, error)
	Logger *slog.Logger // nil: discarded
}

// Defaults of Config.
const (
	DefaultMaxStreams  = 16384
	DefaultMaxForwards = 128
	DefaultOpenTimeout = 10 * time.Second
	DefaultMaxWindow   = 16 << 20
	DefaultMemory      = 64 << 20
)

// initialWindow is how much a stream may send before it is granted more.
const initialWindow = 256 << 10

func (c Config) withDefaults() Config {
	if c.MaxStreams <= 0 {
		c.MaxStreams = DefaultMaxStreams
	}
	if c.MaxForwards <= 0 {
		c.MaxForwards = DefaultMaxForwards
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = DefaultOpenTimeout
	}
	if c.MaxWindow <= 0 {
		c.MaxWindow = DefaultMaxWindow
	}
	c.MaxWindow = max(c.MaxWindow, initialWindow)
	if c.Memory <= 0 {
		c.Memory = DefaultMemory
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// smuxConfig is of a smux that neither sends nor receives data.
func smuxConfig() *smux.Config {
	c := smux.DefaultConfig()
	c.Version = smuxVersion
	c.KeepAliveDisabled = true // the carrier's heartbeats
	return c
}

// controlID is the first stream that an smux client opens.
const controlID = 3

// Session is one end of a session.
type Session struct {
	cfg        Config
	log        *slog.Logger
	link       Link
	smux       *smux.Session
	frames     *smuxConn
	demux      demux
	client     bool
	peerParity uint32 // of the identifiers of streams that the peer opens

	ctx    context.Context // ends with the session
	cancel context.CancelCauseFunc

	late    *patience    // with a peer that has yet to open the control stream
	held    atomic.Int64 // bytes received and unread
	charged atomic.Int64 // those, and what the streams cost

	mu           sync.Mutex
	err          error
	streams      map[uint32]*Stream
	arrivals     arrivals
	ours, theirs int           // streams that each end has open
	peerMax      int           // of ours
	accepted     []*Stream     // that nobody has taken yet
	acceptable   chan struct{} // has an element when there may be some
	leaving      bool          // GoAway was sent
	peerGone     chan struct{}
	peerWhy      string
	done         bool // NoStreams was sent
	peerDone     chan struct{}
	asked        map[uint32]*request // client: remote forwards
	nextID       uint32
	forwards     map[uint32]*forward // server: of the peer, by its numbers

	queue control
	turns turns

	limitLogged atomic.Int64 // when limitReached last wrote, Unix nanoseconds

	running sync.WaitGroup
}

// Client makes the client's end of a session on a new link.
func Client(l Link, cfg Config) (*Session, error) { return newSession(l, cfg, true) }

// Server makes the server's end.
func Server(l Link, cfg Config) (*Session, error) { return newSession(l, cfg, false) }

func newSession(l Link, cfg Config, client bool) (*Session, error) {
	cfg = cfg.withDefaults()
	s := &Session{
		cfg: cfg, log: cfg.Logger, link: l, client: client,
		streams:    map[uint32]*Stream{},
		peerMax:    cfg.MaxStreams, // until the peer has said
		acceptable: make(chan struct{}, 1),
		peerGone:   make(chan struct{}),
		peerDone:   make(chan struct{}),
		asked:      map[uint32]*request{},
		forwards:   map[uint32]*forward{},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.queue.ready.L = &s.mu
	s.queue.records = record{kind: recordMaxStreams, id: uint32(min(cfg.MaxStreams, math.MaxInt32))}.append(nil)
	open := smux.Server
	s.peerParity = 1
	if client {
		open, s.peerParity = smux.Client, 0
	}
	var err error
	s.frames = newSmuxConn(l)
	if s.smux, err = open(s.frames, smuxConfig()); err != nil {
		return nil, err
	}
	if client { // before anybody can open a stream of his own
		if _, err := s.smux.OpenStream(); err != nil {
			s.smux.Close()
			return nil, err
		}
		s.running.Go(s.writeControl)
		l.Send()
	}
	if cfg.Budget != nil {
		cfg.Budget.join(s)
		l.Account(cfg.Budget)
	}
	if !client {
		s.mu.Lock() // its end looks at this
		s.late = s.after(cfg.OpenTimeout, func() {
			err := fmt.Errorf("%w: no control stream within %v", errProtocol, cfg.OpenTimeout)
			s.spawn(func() { s.end(err, err.Error()) })
		})
		s.mu.Unlock()
	}
	s.running.Go(s.watch)
	s.running.Go(s.acceptLoop)
	l.Handle(s.receive, s.room)
	return s, nil
}

// Open opens a stream. It does not wait for the peer's reply: what is written
// arrives with the header. It waits while the link is full, and fails with an
// *[Error] when a limit is reached or the session has ended, and with
// [ErrGoingAway] when the session takes no new streams: either end said so, or the
// stream numbers are used up.
func (s *Session) Open(ctx context.Context, h Header) (*Stream, error) {
	if len(h.Target) > maxTarget {
		return nil, &Error{Code: Internal, Reason: fmt.Sprintf("target of %d bytes, at most %d", len(h.Target), maxTarget)}
	}
	s.mu.Lock()
	err := s.openable()
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	st := newStream(s, 0, true)
	st.header = h
	stop := context.AfterFunc(ctx, func() { st.Reset(Cancelled, "open cancelled") })
	defer stop()
	err = st.exclusive(st.open)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// open opens st at the peer and sends the header with it.
func (st *Stream) open() error {
	s := st.sess
	s.mu.Lock()
	s.appendRecords() // resets among them, which make room for this stream at the peer
	s.mu.Unlock()
	raw, err := s.smux.OpenStream()
	if errors.Is(err, smux.ErrGoAway) { // after 2³¹ streams
		const usedUp = "stream numbers used up"
		s.GoAway(usedUp)
		return fmt.Errorf("%w: %s", ErrGoingAway, usedUp)
	}
	header := st.header.append(nil)
	s.mu.Lock()
	if err != nil {
		defer s.mu.Unlock()
		return s.lostLocked(err)
	}
	st.id, st.raw = raw.ID(), raw
	st.sent += uint64(len(header))
	if err := st.endedLocked(); err != nil { // before the peer could be told
		defer s.mu.Unlock()
		if s.err == nil {
			s.tellReset(st)
			s.queueClose(st)
		}
		return err
	}
	s.register(st)
	s.mu.Unlock()
	if err := s.push(st.id, header); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.lostLocked(err)
	}
	return nil
}

func (s *Session) openable() error {
	select {
	case <-s.peerGone:
		return fmt.Errorf("%w: %q", ErrGoingAway, s.peerWhy)
	default:
	}
	if s.err != nil {
		return s.lostLocked(s.err)
	}
	if s.leaving { // the peer may have said already that it has no streams
		return fmt.Errorf("%w: this end is leaving", ErrGoingAway)
	}
	if most := min(s.cfg.MaxStreams, s.peerMax); s.ours >= most {
		s.limitReached("max_streams", "value", most)
		return &Error{Code: Limit, Reason: tooManyStreams}
	}
	return nil
}

// Accept waits for a stream that the peer opened and whose header has arrived.
func (s *Session) Accept(ctx context.Context) (*Stream, error) {
	for {
		if st := s.takeAccepted(); st != nil {
			return st, nil
		}
		select {
		case <-s.acceptable:
		case <-s.ctx.Done():
			return nil, s.Err()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// takeAccepted returns a stream that waits to be accepted and has not been reset, or nil.
func (s *Session) takeAccepted() *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.accepted) > 0 {
		st := s.accepted[0]
		s.accepted[0] = nil
		if s.accepted = s.accepted[1:]; len(s.accepted) == 0 {
			s.accepted = nil
		}
		if !st.finished {
			s.wakeAccept() // somebody else may wait, too
			return st
		}
	}
	return nil
}

// wakeAccept wakes who waits for a stream if there are some. Called with mu held.
func (s *Session) wakeAccept() {
	if len(s.accepted) > 0 {
		select {
		case s.acceptable <- struct{}{}:
		default:
		}
	}
}

// acceptLoop never waits for anybody: smux stops reading when nobody accepts.
func (s *Session) acceptLoop() {
	for {
		raw, err := s.smux.AcceptStream()
		if err != nil {
			s.end(err, err.Error())
			return
		}
		if raw.ID() == controlID {
			s.running.Go(s.writeControl)
			continue
		}
		s.mu.Lock()
		st := s.streams[raw.ID()]
		if st == nil { // reset on the way, which the peer must learn before FIN
			s.appendRecords()
			s.mu.Unlock()
			raw.Close()
			s.link.Send()
			continue
		}
		st.raw = raw
		s.accepted = append(s.accepted, st)
		s.wakeAccept()
		s.mu.Unlock()
	}
}

// limitReached logs that a limit has bitten, at most once a second.
func (s *Session) limitReached(limit string, args ...any) {
	now, last := time.Now().UnixNano(), s.limitLogged.Load()
	if now-last >= int64(time.Second) && s.limitLogged.CompareAndSwap(last, now) {
		s.log.Warn("limit reached", append([]any{"limit", limit}, args...)...)
	}
}

// spawn runs f on a goroutine that the session joins, unless it has ended.
func (s *Session) spawn(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.running.Go(f)
	}
}

// streamCost is what a stream counts in a budget, beside its bytes: what it takes of
// memory here and where it is served, in goroutines most of all.
const streamCost = 8 << 10

// register adds a stream. Called with mu held.
func (s *Session) register(st *Stream) {
	s.streams[st.id] = st
	st.counts = true
	*s.countOf(st)++
	st.blockedSince = time.Now()
	s.charged.Add(streamCost)
	s.cfg.Budget.Charge(streamCost)
}

// countOf is the number of streams that st is one of.
func (s *Session) countOf(st *Stream) *int {
	if st.ours {
		return &s.ours
	}
	return &s.theirs
}

// countLocked stops counting a stream for the limit when both ends have closed it: the
// opener when it has sent its FIN, and the acceptor, who may learn of that late, before.
// Nobody needs to have read the last bytes. Called with mu held.
func (s *Session) countLocked(st *Stream) {
	closed := st.ended && (st.closed || !st.ours && st.writeDone)
	if st.counts && (closed || st.finished) {
		st.counts = false
		*s.countOf(st)--
	}
}

// finishLocked removes a stream that has ended in both directions, or that was reset.
// Called with mu held.
func (s *Session) finishLocked(st *Stream) {
	clean := st.readDone && st.writeDone
	if st.finished || !clean && st.reset == nil {
		return
	}
	st.finished = true
	s.forgetLocked(st)
	st.cancel(nil)
}

// forgetLocked gives back what a stream that has ended holds. Called with mu held.
func (s *Session) forgetLocked(st *Stream) {
	st.inbox.drop()
	s.chargeLocked(st)
	st.readBy.stop()
	st.writeBy.stop()
	if s.streams[st.id] != st { // it was never opened
		return
	}
	delete(s.streams, st.id)
	s.countLocked(st)
	s.charged.Add(-streamCost)
	s.cfg.Budget.Charge(-streamCost)
}

// resetLocked makes e the end of st and wakes everybody who waits for it. It
// does not tell the peer. Called with mu held.
func (s *Session) resetLocked(st *Stream, e *Error) {
	st.reset = e
	st.cancel(e)
	s.finishLocked(st)
	st.changed()
	st.writable.Broadcast()
	s.queueClose(st)
}

// tellReset tells the peer of a stream's reset. Called with mu held.
func (s *Session) tellReset(st *Stream) {
	s.queueRecord(record{kind: recordReset, id: st.id, code: st.reset.Code, reason: st.reset.Reason})
}

// lostLocked is the end that the session's end means to a stream. Called with mu
// held.
func (s *Session) lostLocked(err error) *Error {
	if s.err != nil {
		err = s.err
	}
	return &Error{Code: SessionLost, Reason: clip(err.Error())}
}

// NumStreams is the number of streams that have not ended.
func (s *Session) NumStreams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Done is closed when the session has ended; Err says why.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Err is why the session ended, nil while it has not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session and all its streams. What was written before is given
// up to flush to reach the peer. It returns when everything has ended.
func (s *Session) Close(reason string, flush time.Duration) {
	if flush > 0 {
		s.flush(flush)
	}
	s.end(ErrClosed, reason)
	s.running.Wait()
}

// flush waits, at most d, until the queued records are written and everything
// is acknowledged.
func (s *Session) flush(d time.Duration) {
	ctx, cancel := context.WithTimeout(s.ctx, d)
	defer cancel()
	s.drainQueue(ctx)
	s.link.Flush(ctx.Done())
}

// watch ends the session when its link ends.
func (s *Session) watch() {
	select {
	case <-s.link.Done():
		s.end(s.link.Err(), "")
	case <-s.ctx.Done():
	}
}

// end ends the session once. It does not wait for the session's goroutines.
func (s *Session) end(err error, reason string) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	lost := s.lostLocked(err)
	for _, st := range s.streams {
		st.finished = true
		st.cancel(lost)
		s.forgetLocked(st) // deletes it
		st.changed()
		st.writable.Broadcast()
	}
	for _, row := range s.turns.waiting {
		for _, k := range row { // also of those that are about to be opened
			k.st.writable.Broadcast()
		}
	}
	s.accepted = nil
	s.arrivals.of = nil
	s.arrivals.timer.Stop()
	s.late.Stop()
	s.queue.ready.Broadcast()
	s.cancel(err) // ends the listeners, too
	s.mu.Unlock()

	s.cfg.Budget.leave(s)
	s.frames.Close() // the link waits for who receives
	s.link.Close(reason)
	s.smux.Close()
}
