package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func reset(id uint32, code Code, reason string) frame {
	return onControl(record{kind: recordReset, id: id, code: code, reason: reason})
}

// patient is a writer that takes nothing without waiting.
type patient struct{ io.Writer }

func (patient) TryWrite([]byte) (int, error) { return 0, nil }

// deliver waits until everything was delivered to w.
func deliver(st *Stream, w io.Writer) (n int64, err error) {
	if err := st.awaitReply(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	st.Deliver(patient{w}, func(written int64, e error) {
		n, err = written, e
		close(done)
	})
	<-done
	return n, err
}

// wantError expects the end of a stream to be err, in every way to learn of it.
func wantError(t *testing.T, st *Stream, want Error) {
	t.Helper()
	_, read := st.Read(make([]byte, 1))
	_, to := deliver(st, io.Discard)
	_, write := st.Write([]byte("x"))
	<-st.Context().Done()
	for what, err := range map[string]error{
		"read": read, "Deliver": to, "write": write, "CloseWrite": st.CloseWrite(), "context": context.Cause(st.Context()),
	} {
		var e *Error
		if !errors.As(err, &e) || *e != want {
			t.Errorf("%s: %v, want %v", what, err, &want)
		}
	}
}

// A reset ends a stream at both ends at once. Nothing is sent in answer but FIN, which
// means nothing, and what comes for the stream afterwards goes to nobody.
func TestReset(t *testing.T) {
	p := newPeer(t, Client, Config{})
	fin := func(id uint32) frame { return frame{frameFIN, id, ""} }
	ours := p.open(5)
	ours.Reset(ResetByPeer, "rst")
	ours.Reset(Internal, "once more")
	p.want(reset(5, ResetByPeer, "rst"), fin(5))
	wantError(t, ours, Error{ResetByPeer, "rst"})
	p.say(frame{framePSH, 5, "\x00too late"}, reset(5, Internal, "too late"), fin(5))
	p.settled()
	ours.Close()
	p.settled() // ended before

	theirs := p.open(7)
	p.say(reset(7, Unreachable, "no route"))
	p.want(fin(7))
	wantError(t, theirs, Error{Unreachable, "no route"})
	p.say(fin(7))
	p.settled()

	both := p.open(9)
	both.Reset(Cancelled, "closed")
	p.say(reset(9, ResetByPeer, "at the same time"))
	p.want(reset(9, Cancelled, "closed"), fin(9))
	wantError(t, both, Error{Cancelled, "closed"})
	p.settled()
	if n, held := p.s.NumStreams(), p.s.charged.Load(); n != 0 || held != 0 {
		t.Errorf("%d streams left, and %d bytes", n, held)
	}
}

// Resets of streams that there are not, or that were reset, are not answered, however
// many come.
func TestResetsOfNothing(t *testing.T) {
	for name, session := range map[string]func(Link, Config) (*Session, error){"client": Client, "server": Server} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, session, Config{})
			for id := range uint32(1000) {
				p.say(reset(id, Cancelled, "again"))
			}
			p.settled()
		})
	}
}

// Streams that are reset before the session has taken notice of them, by either
// end, leave nothing behind.
func TestResetBeforeAccept(t *testing.T) {
	p := newPeer(t, Server, Config{Budget: NewBudget(1 << 30)})
	header := string(Header{Kind: KindDial}.append(nil))
	for id := uint32(5); id < 405; id += 4 {
		ours, theirs := id, id+2
		p.say(frame{frameSYN, ours, ""}, frame{framePSH, ours, header})
		p.s.mu.Lock()
		st := p.s.streams[ours]
		p.s.mu.Unlock()
		st.Reset(OverBudget, "too much")
		p.want(reset(ours, OverBudget, "too much"), frame{frameFIN, ours, ""})
		p.say(frame{frameSYN, theirs, ""}, frame{framePSH, theirs, header}, reset(theirs, Cancelled, "changed my mind"))
		p.want(frame{frameFIN, theirs, ""})
		p.sent()
		p.say(frame{frameSYN, theirs + 1000, ""}, reset(theirs+1000, Cancelled, "before the header"))
		p.settled()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if st, err := p.s.Accept(ctx); err == nil {
		t.Errorf("stream %d was accepted, which was reset", st.ID())
	}
	if n, used := p.s.NumStreams(), p.s.cfg.Budget.used.Load(); n != 0 || used != 0 {
		t.Errorf("%d streams left, and %d bytes", n, used)
	}
}

// A clean end needs both directions, in either order, and no records.
func TestCleanEnd(t *testing.T) {
	for _, first := range []string{"peer", "session"} {
		t.Run(first, func(t *testing.T) {
			p := newPeer(t, Client, Config{})
			st := p.open(5)
			p.say(frame{framePSH, 5, "\x00answer"})
			closeRead := func() {
				p.say(frame{frameFIN, 5, ""})
				if b, err := io.ReadAll(st); string(b) != "answer" || err != nil {
					t.Errorf("read %q, %v", b, err)
				}
			}
			closeWrite := func() {
				for range 2 {
					if err := st.CloseWrite(); err != nil {
						t.Errorf("CloseWrite: %v", err)
					}
				}
				p.want(frame{frameFIN, 5, ""})
			}
			steps := []func(){closeRead, closeWrite}
			if first == "session" {
				steps[0], steps[1] = steps[1], steps[0]
			}
			steps[0]()
			if n := p.s.NumStreams(); n != 1 || st.Context().Err() != nil {
				t.Errorf("%d streams, %v, after the end of one direction", n, st.Context().Err())
			}
			steps[1]()
			if n := p.s.NumStreams(); n != 0 || st.Context().Err() == nil {
				t.Errorf("%d streams, %v, after the end of both", n, st.Context().Err())
			}
			st.Close()
			p.settled()
		})
	}
}

// A refusal ends the stream when the opener has closed it, or in a while.
func TestRefuse(t *testing.T) {
	long := strings.Repeat("x", 300)
	refusal := frame{framePSH, 5, "\x05\xff" + long[:255]}
	for _, closes := range []bool{true, false} {
		cfg := Config{OpenTimeout: 500 * time.Millisecond}
		if closes {
			cfg.OpenTimeout = 0
		}
		p := newPeer(t, Server, cfg)
		st := p.serve(5)
		if err := st.Refuse(Denied, long); err != nil {
			t.Fatal(err)
		}
		p.want(refusal, frame{frameFIN, 5, ""})
		p.say(frame{framePSH, 5, "sent before the refusal came"})
		if closes {
			p.say(frame{frameFIN, 5, ""})
			<-st.Context().Done()
			p.settled()
		} else {
			p.want(reset(5, TimedOut, "refused stream not closed"))
		}
	}

	p := newPeer(t, Client, Config{})
	st := p.open(5)
	p.say(refusal)
	if err := st.Reply(t.Context()); CodeOf(err) != Denied {
		t.Errorf("Reply: %v, want denied", err)
	}
	p.want(frame{frameFIN, 5, ""})
	p.say(frame{frameFIN, 5, ""})
	<-st.Context().Done()
	if _, err := st.Read(make([]byte, 1)); CodeOf(err) != Denied {
		t.Errorf("Read: %v, want denied", err)
	}
}

// The end of a stream before its reply is no end of file.
func TestNoReply(t *testing.T) {
	for name, payload := range map[string]string{"nothing": "", "a part": "\x05\xffx"} {
		p := newPeer(t, Client, Config{})
		st := p.open(5)
		p.say(frame{framePSH, 5, payload}, frame{frameFIN, 5, ""})
		if _, err := io.ReadAll(st); CodeOf(err) != Protocol {
			t.Errorf("%s: read %v, want a protocol error", name, err)
		}
		p.want(reset(5, Cancelled, "closed"), frame{frameFIN, 5, ""})
	}
}

// What ends the wait for a reply says why.
func TestReplyContext(t *testing.T) {
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for code, ctx := range map[Code]context.Context{TimedOut: expired, Cancelled: cancelled} {
		st := newPeer(t, Client, Config{}).open(5)
		if err := st.Reply(ctx); CodeOf(err) != code {
			t.Errorf("%v: Reply: %v, want %v", ctx.Err(), err, code)
		}
	}
}

// New streams are refused after GoAway, and beyond the limit, of which the peer is told:
// with a reset and nothing else, whatever follows.
func TestRefusedAtOnce(t *testing.T) {
	p := newPeer(t, Server, Config{MaxStreams: 2})
	first, second := p.serve(5), p.serve(7)
	refused := func(id uint32, code Code, reason string) {
		t.Helper()
		p.say(frame{frameSYN, id, ""}, frame{framePSH, id, "\x01\x00\x00data"})
		p.want(reset(id, code, reason))
		p.say(frame{framePSH, id, "more data"}, frame{frameFIN, id, ""})
		p.settled()
	}
	for id := uint32(9); id < 300; id += 2 {
		refused(id, Limit, "too many streams in this session")
	}
	// The peer's limit is its own, and that of this end another.
	p.say(onControl(record{kind: recordMaxStreams, id: 1}))
	p.open(2)
	if _, err := p.s.Open(t.Context(), Header{Kind: KindForward}); CodeOf(err) != Limit {
		t.Errorf("Open: %v, want a limit", err)
	}
	// A stream makes room when it was reset, or closed by both ends, read or not.
	first.Reset(Cancelled, "")
	p.want(reset(5, Cancelled, ""), frame{frameFIN, 5, ""})
	p.serve(301)
	p.say(frame{framePSH, 7, "unread"}, frame{frameFIN, 7, ""})
	refused(303, Limit, "too many streams in this session")
	if err := second.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	p.want(frame{frameFIN, 7, ""})
	third := p.serve(305)

	for range 2 {
		p.s.GoAway(strings.Repeat("y", 300))
	}
	p.want(onControl(record{kind: recordGoAway, reason: strings.Repeat("y", 255)}))
	refused(307, Stopping, "shutting down")
	third.Close()
	p.want(reset(305, Cancelled, "closed"), frame{frameFIN, 305, ""})
	refused(309, Stopping, "shutting down")
	for range 2 {
		p.say(onControl(record{kind: recordGoAway, reason: "me too"}))
	}
	p.settled()
	_, err := p.s.Open(t.Context(), Header{Kind: KindForward})
	if !errors.Is(err, ErrGoingAway) || !strings.Contains(err.Error(), "me too") {
		t.Errorf("Open: %v, want that the peer is going away", err)
	}
}

// Few streams may be without their header at once, and those leave nothing behind.
func TestFewWithoutHeader(t *testing.T) {
	p := newPeer(t, Server, Config{Budget: NewBudget(1)})
	id := uint32(5)
	for range maxArrivals {
		p.say(frame{frameSYN, id, ""})
		id += 2
	}
	p.settled()
	for range 100 {
		p.say(frame{frameSYN, id, ""})
		p.want(reset(id, Limit, "too many streams without a header"))
		id += 2
	}
	p.say(frame{frameFIN, 5, ""})
	p.want(reset(5, Protocol, "no valid header"))
	p.say(frame{frameSYN, id, ""})
	p.settled()
	if n, raw, used := p.s.NumStreams(), p.s.smux.NumStreams(), p.s.cfg.Budget.used.Load(); n != 0 || raw != 1 || used != 0 {
		t.Errorf("%d streams, %d with the control stream in smux, %d bytes; want none, 1 and 0", n, raw, used)
	}
}

// A header may come in pieces, and data right behind it.
func TestHeaderInPieces(t *testing.T) {
	p := newPeer(t, Server, Config{})
	h := Header{KindDial, "target:1"}
	opening := string(h.append(nil)) + "data"
	for cut := range opening {
		id := uint32(5 + 2*cut)
		p.say(frame{frameSYN, id, ""}, frame{framePSH, id, opening[:cut]}, frame{framePSH, id, ""}, frame{framePSH, id, opening[cut:]})
		st, err := p.s.Accept(t.Context())
		if err != nil || st.Header() != h {
			t.Fatalf("cut after %d: %+v, %v", cut, st, err)
		}
		p.say(frame{frameFIN, id, ""})
		if got, err := io.ReadAll(st); string(got) != "data" || err != nil {
			t.Errorf("cut after %d: %q, %v", cut, got, err)
		}
		if st.received != uint64(len(opening)) || st.consumed != st.received {
			t.Errorf("cut after %d: %d bytes received, %d read", cut, st.received, st.consumed)
		}
	}
}

// A header that came in time sets no limit to the stream, and a stream that
// nobody accepts does not hold up the end.
func TestHeaderInTime(t *testing.T) {
	p := newPeer(t, Server, Config{OpenTimeout: 500 * time.Millisecond})
	st := p.serve(5)
	p.say(frame{frameSYN, 7, ""}, frame{framePSH, 7, "\x01\x00\x00"})
	p.say(frame{frameSYN, 9, ""}, frame{framePSH, 9, "\x01\x00"})
	p.want(reset(9, TimedOut, "no header in time")) // later than that of 5 would come
	if err := context.Cause(st.Context()); err != nil {
		t.Errorf("stream with a header: %v", err)
	}
	p.s.Close("over", 0)
	if p.reason != "over" {
		t.Errorf("link closed with %q", p.reason)
	}
}

func TestOpenFails(t *testing.T) {
	p := newPeer(t, Client, Config{})
	if _, err := p.s.Open(t.Context(), Header{KindDial, strings.Repeat("x", maxTarget+1)}); CodeOf(err) != Internal {
		t.Errorf("long target: %v, want an internal error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	st, err := p.s.Open(ctx, Header{Kind: KindDial})
	if err != nil {
		t.Fatal(err)
	}
	p.want(frame{frameSYN, 5, ""}, frame{framePSH, 5, "\x01\x00\x00"})
	cancel() // the stream is open
	for range 10 {
		p.settled()
	}
	if err := context.Cause(st.Context()); err != nil {
		t.Errorf("stream reset with its open's context: %v", err)
	}

	p.full.Store(true)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := p.s.Open(ctx, Header{Kind: KindDial}); CodeOf(err) != Cancelled {
		t.Errorf("on a full link: %v, want cancelled", err)
	}
	p.none()
	failed := make(chan error, 2)
	go func() {
		_, err := p.s.Open(t.Context(), Header{Kind: KindDial})
		failed <- err
	}()
	go func() {
		_, err := st.Write([]byte("x"))
		failed <- err
	}()
	p.queued(2)
	p.s.Close("over", 0)
	p.none()
	for range 2 {
		if err := <-failed; CodeOf(err) != SessionLost || !strings.Contains(err.Error(), ErrClosed.Error()) {
			t.Errorf("open or write of a session that ends: %v, want session lost", err)
		}
	}
}

// After the last stream number a session takes no new streams, and goes on.
func TestStreamNumbersUsedUp(t *testing.T) {
	p := newPeer(t, Client, Config{})
	next := reflect.ValueOf(p.s.smux).Elem().FieldByName("nextStreamID")
	*(*uint32)(unsafe.Pointer(next.UnsafeAddr())) = math.MaxUint32 - 2 // opening 2³¹ streams takes long
	st := p.open(math.MaxUint32)
	for range 2 {
		if _, err := p.s.Open(t.Context(), Header{Kind: KindDial}); !errors.Is(err, ErrGoingAway) {
			t.Errorf("Open: %v, want %v", err, ErrGoingAway)
		}
	}
	p.want(onControl(record{kind: recordGoAway, reason: "stream numbers used up"}))
	if _, err := st.Write([]byte("still")); err != nil {
		t.Errorf("write: %v", err)
	}
	p.want(frame{framePSH, math.MaxUint32, "still"})
}

// The end of a session writes what waits, flushes it and gives everything back.
func TestSessionEnd(t *testing.T) {
	budget := NewBudget(1 << 20)
	p := newPeer(t, Server, Config{Budget: budget})
	st := p.serve(5)
	p.say(frame{framePSH, 5, "unread"})
	p.settled()
	if budget.used.Load() == 0 {
		t.Error("unread bytes do not count")
	}
	p.s.GoAway("soon")
	p.s.Close("over", time.Minute)
	p.want(onControl(record{kind: recordGoAway, reason: "soon"}), flushed)
	wantError(t, st, Error{SessionLost, ErrClosed.Error()})
	if used, n := budget.used.Load(), len(budget.sessions); used != 0 || n != 0 {
		t.Errorf("%d bytes of %d sessions in the budget", used, n)
	}
	if _, err := p.s.Accept(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Accept: %v, want %v", err, ErrClosed)
	}

	p = newPeer(t, Client, Config{})
	p.script.end(errScriptOver)
	<-p.s.Done()
	if err := p.s.Err(); !errors.Is(err, errScriptOver) {
		t.Errorf("session ended with %v, want the link's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newPeer(t, Server, Config{}).s.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Accept: %v, want the context's end", err)
	}
}

// Deadlines and failing writers end one call, not the stream.
func TestInterruptedCalls(t *testing.T) {
	p := newPeer(t, Server, Config{})
	st := p.serve(5)
	p.full.Store(true)
	st.SetDeadline(time.Now().Add(-time.Second))
	if _, err := st.Read(make([]byte, 1)); CodeOf(err) != TimedOut {
		t.Errorf("read: %v, want timed out", err)
	}
	if _, err := st.Write([]byte("x")); CodeOf(err) != TimedOut {
		t.Errorf("write: %v, want timed out", err)
	}
	st.SetDeadline(time.Time{})
	p.full.Store(false)
	if _, err := st.Write([]byte("x")); err != nil {
		t.Errorf("write: %v", err)
	}
	p.want(frame{framePSH, 5, "x"})
	p.say(frame{framePSH, 5, "some"}, frame{frameFIN, 5, ""})
	var got bytes.Buffer
	if n, err := deliver(st, &got); n != 4 || err != nil || got.String() != "some" {
		t.Errorf("Deliver: %d bytes, %q, %v", n, got.String(), err)
	}
	if held := p.s.held.Load(); held != 0 {
		t.Errorf("%d bytes held after all was read", held)
	}
	st = p.serve(7)
	p.say(frame{framePSH, 7, "lost"})
	broken, w := io.Pipe()
	broken.CloseWithError(io.ErrNoProgress)
	if _, err := deliver(st, w); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Deliver: %v, want the writer's error", err)
	}
}
