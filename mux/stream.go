package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/xtaci/smux"
)

// Stream is one stream of a session. It is a net.Conn whose addresses are the
// session's. Reads may go on beside writes, each by one goroutine at a time;
// everything else may be called by any.
//
// Its owner must end it: by reading to the end of file and CloseWrite, or by
// Close or Reset.
type Stream struct {
	sess   *Session
	id     uint32
	ours   bool // opened by this end
	header Header

	ctx    context.Context
	cancel context.CancelCauseFunc

	raw *smux.Stream // set before the stream is handed out

	replied sync.Once // opener: the reply was read
	refusal error

	// Guarded by Session.mu. Bytes count from the stream's first, header and
	// reply included.
	received     uint64 // from the peer
	consumed     uint64 // thereof read here
	granted      uint64 // that the peer may send
	grantedAt    time.Time
	window       int
	inbox        inbox
	readable     sync.Cond // or an error
	sink         *sink     // of Deliver
	ended        bool      // the peer sends no more
	charge       int64     // to the budgets
	blockedSince time.Time
	queued       bool // a window record waits to be written
	sent         uint64
	sentAt       time.Time
	credit       uint64    // that we may send
	writable     sync.Cond // or an error
	write, edge  ticket
	readBy       deadline
	writeBy      deadline
	readDone     bool // end of file was read
	writeDone    bool // CloseWrite was called
	closed       bool // the peer was sent FIN
	counts       bool // for the limit of streams
	reset        *Error
	finished     bool // no longer in Session.streams
}

var _ net.Conn = (*Stream)(nil)

func newStream(s *Session, id uint32, ours bool) *Stream {
	st := &Stream{
		sess: s, id: id, ours: ours,
		granted: initialWindow, credit: initialWindow, window: initialWindow, grantedAt: time.Now(),
	}
	st.writable.L, st.readable.L = &s.mu, &s.mu
	st.write.st, st.edge.st = st, st
	st.ctx, st.cancel = context.WithCancelCause(s.ctx)
	return st
}

// ID names the stream within its session, for logs.
func (st *Stream) ID() uint64 { return uint64(st.id) }

// Header says what the stream was opened for.
func (st *Stream) Header() Header { return st.header }

// Context ends when the stream was reset by either end, has ended cleanly, or
// its session ended. The cause of all but the clean end is an *[Error].
func (st *Stream) Context() context.Context { return st.ctx }

// LocalAddr and RemoteAddr are placeholders: a stream has no address of its own.
func (st *Stream) LocalAddr() net.Addr  { return addr{} }
func (st *Stream) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "culvert" }
func (addr) String() string  { return "culvert" }

// Accept tells the opener that its stream is served. It comes first of what the
// acceptor writes.
func (st *Stream) Accept() error {
	_, err := st.Write(appendReply(nil, nil))
	return err
}

// Refuse tells the opener why its stream is not served, and ends the stream.
func (st *Stream) Refuse(code Code, reason string) error {
	_, err := st.Write(appendReply(nil, &Error{Code: code, Reason: reason}))
	if err == nil {
		err = st.CloseWrite()
	}
	st.discard()
	return err
}

// discard reads what the opener sent before it learned of the refusal, without
// keeping anybody waiting.
func (st *Stream) discard() {
	st.sess.spawn(func() {
		late := st.sess.after(st.sess.cfg.OpenTimeout, func() { st.Reset(TimedOut, "refused stream not closed") })
		defer late.Stop()
		var b [512]byte
		for {
			if _, err := st.read(b[:]); err != nil {
				return
			}
		}
	})
}

// Reply waits for the acceptor's word: nil if the stream is served, an *[Error]
// if it was refused or reset. The end of ctx resets the stream, as TimedOut if
// it was a deadline and as Cancelled otherwise. Reading from the stream does the
// same implicitly, without a limit.
func (st *Stream) Reply(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			st.Reset(TimedOut, "no reply in time")
		} else {
			st.Reset(Cancelled, "user left before the reply")
		}
	})()
	return st.awaitReply()
}

func (st *Stream) awaitReply() error {
	if !st.ours {
		return nil
	}
	st.replied.Do(func() {
		refusal, err := readReply(readerFunc(st.read))
		switch {
		case refusal != nil:
			st.refusal = refusal
			st.CloseWrite()
			st.discard()
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			st.refusal = &Error{Code: Protocol, Reason: "stream closed without a reply"}
			st.Close()
		default:
			st.refusal = err
		}
	})
	return st.refusal
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Read reads received bytes. It returns io.EOF after the peer's CloseWrite and
// an *[Error] after a refusal, a reset or the session's end.
func (st *Stream) Read(p []byte) (int, error) {
	if err := st.awaitReply(); err != nil {
		return 0, err
	}
	return st.read(p)
}

// read is Read without the reply.
func (st *Stream) read(p []byte) (int, error) {
	s := st.sess
	s.mu.Lock()
	err := st.awaitBytes()
	n := 0
	if err == nil {
		n = copy(p, st.inbox.front())
		st.inbox.take(n)
		s.consumed(st, n)
	}
	s.unlockAndSend()
	return n, err
}

// awaitBytes waits until there is something to be read, or says why not. Called
// with mu held.
func (st *Stream) awaitBytes() error {
	for {
		err := st.next()
		if !errors.Is(err, errNothing) {
			return err
		}
		if st.readBy.passed() {
			return &Error{Code: TimedOut, Reason: "read deadline"}
		}
		st.readable.Wait()
	}
}

// errNothing says that there is nothing to be read yet.
var errNothing = errors.New("nothing received")

// next is nil if there is something to be read, and otherwise says why not. Called
// with mu held.
func (st *Stream) next() error {
	ended := st.endedLocked()
	switch {
	case st.reset == nil && st.readDone:
		return io.EOF
	case ended != nil:
		return ended
	case !st.inbox.empty():
		return nil
	case st.ended:
		st.readDone = true
		st.sess.finishLocked(st)
		return io.EOF
	default:
		return errNothing
	}
}

// Write sends p. It waits while the peer's window is used up or the link is
// full, and fails with an *[Error] after a reset or the session's end, and with
// io.ErrClosedPipe after CloseWrite.
func (st *Stream) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k, crowded, err := st.begin(len(p) - n)
		if err == nil {
			k, err = st.sendTurn(p[n:n+k], crowded)
			n += k
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// sendTurn sends p in the turn that begin has given, and ends it.
func (st *Stream) sendTurn(p []byte, crowded bool) (int, error) {
	s := st.sess
	err := s.push(st.id, p)
	st.write.end()
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return 0, s.lostLocked(err)
	}
	if crowded {
		runtime.Gosched()
	}
	s.link.Send()
	return len(p), nil
}

// CloseWrite tells the peer that no more bytes follow; reading goes on. It waits
// while the link is full.
func (st *Stream) CloseWrite() error {
	s := st.sess
	s.mu.Lock()
	switch {
	case st.reset != nil:
		defer s.mu.Unlock()
		return st.reset
	case s.err != nil:
		defer s.mu.Unlock()
		return s.lostLocked(s.err)
	case st.writeDone:
		s.mu.Unlock()
		return nil
	}
	st.writeDone = true
	s.countLocked(st)
	st.writable.Broadcast()
	s.mu.Unlock()

	err := st.exclusive(st.raw.CloseWrite)

	s.mu.Lock()
	defer s.mu.Unlock()
	if st.reset != nil {
		return st.reset
	}
	st.closed = true
	s.countLocked(st)
	s.finishLocked(st)
	if err != nil {
		return s.lostLocked(err)
	}
	return nil
}

// Close ends the stream: cleanly if both directions have ended, and otherwise
// with a reset that says Cancelled.
func (st *Stream) Close() error {
	st.Reset(Cancelled, "closed")
	return nil
}

// Reset ends the stream abruptly, unless it has ended already. Reads and writes
// of both ends fail with an *[Error]. It does not block.
func (st *Stream) Reset(code Code, reason string) {
	s := st.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.finished || st.reset != nil || s.err != nil {
		return
	}
	opened := st.id != 0 // else open tells the peer
	s.resetLocked(st, &Error{Code: code, Reason: clip(reason)})
	if opened {
		s.tellReset(st)
	}
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (st *Stream) SetDeadline(t time.Time) error {
	st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

// SetReadDeadline makes reads fail at t with an *[Error] of code TimedOut.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.setDeadline(&st.readBy, &st.readable, t)
	return nil
}

// SetWriteDeadline makes writes fail at t likewise.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.setDeadline(&st.writeBy, &st.writable, t)
	return nil
}

// deadline of reads or writes. The zero value is none.
type deadline struct {
	at    time.Time
	timer *time.Timer // wakes up who waits
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (st *Stream) setDeadline(d *deadline, waiting *sync.Cond, t time.Time) {
	s := st.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	d.stop()
	if d.at = t; !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			s.mu.Lock()
			waiting.Broadcast()
			s.mu.Unlock()
		})
	}
	waiting.Broadcast()
}
