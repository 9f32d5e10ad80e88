package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// valve is a writer that takes what the test says. It has no lock: the race
// detector sees who else than the receiving goroutine and one other writes.
type valve struct {
	try     func(p []byte) (int, error) // nil: takes everything
	writing chan struct{}               // told by Write, which then waits for goOn
	goOn    chan result
	got     bytes.Buffer
	tries   int
}

// result is what a Write is to return; all is as many bytes as there are.
type result struct {
	n   int
	err error
}

const all = -1

func newValve() *valve {
	return &valve{writing: make(chan struct{}), goOn: make(chan result)}
}

func (v *valve) TryWrite(p []byte) (n int, err error) {
	v.tries++
	if n = len(p); v.try != nil {
		n, err = v.try(p)
	}
	v.got.Write(p[:n])
	return n, err
}

func (v *valve) Write(p []byte) (int, error) {
	v.writing <- struct{}{}
	r := <-v.goOn
	if r.n == all {
		r.n = len(p)
	}
	v.got.Write(p[:r.n])
	return r.n, r.err
}

// ending is what done was called with.
type ending struct {
	n   int64
	err error
}

func deliverTo(st *Stream, w TryWriter) <-chan ending {
	ends := make(chan ending, 10)
	st.Deliver(w, func(n int64, err error) { ends <- ending{n, err} })
	return ends
}

// wantEnding expects the only call of done.
func (p *peer) wantEnding(ends <-chan ending, n int64, err error) {
	p.t.Helper()
	select {
	case e := <-ends:
		if e.n != n || !errors.Is(e.err, err) {
			p.t.Errorf("done with %d bytes, %v; want %d, %v", e.n, e.err, n, err)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("done not called")
	}
	p.onlyEnding(ends)
}

func (p *peer) onlyEnding(ends <-chan ending) {
	p.t.Helper()
	for range 100 {
		runtime.Gosched()
	}
	if len(ends) > 0 {
		p.t.Errorf("done called once more: %v", <-ends)
	}
}

// state of st's sink.
func (st *Stream) sinkState() (delivering, busy bool) {
	st.sess.mu.Lock()
	defer st.sess.mu.Unlock()
	return st.sink != nil, st.sink != nil && st.sink.busy
}

// told waits for v's Write.
func (p *peer) told(v *valve) {
	p.t.Helper()
	select {
	case <-v.writing:
	case <-time.After(20 * time.Second):
		p.t.Fatal("no Write")
	}
}

func data(id uint32, text string) frame { return frame{framePSH, id, text} }

// What a writer takes at once is written while it is received, by who receives
// it, and counts as read.
func TestDeliverAtOnce(t *testing.T) {
	p := newPeer(t, Server, Config{MaxWindow: initialWindow})
	st := p.serve(5)
	v := newValve()
	ends := deliverTo(st, v)
	const size = 60_000
	header := len(st.Header().append(nil))
	for i := range 3 {
		text := strings.Repeat(string(rune('a'+i)), size)
		p.say(data(5, text))
		if got := v.got.String(); len(got) != (i+1)*size || !strings.HasSuffix(got, text) || v.tries != i+1 {
			t.Fatalf("%d bytes after %d TryWrites, want %d after %d", len(got), v.tries, (i+1)*size, i+1)
		}
		if _, busy := st.sinkState(); busy {
			t.Fatal("somebody else writes")
		}
		if held := p.s.held.Load(); held != 0 {
			t.Errorf("%d bytes held", held)
		}
		if i < 2 {
			p.none() // half of the window is not used
		}
	}
	granted := uint64(header + 3*size + initialWindow)
	p.want(onControl(record{kind: recordWindow, id: 5, bytes: granted}))
	p.say(frame{frameFIN, 5, ""})
	p.wantEnding(ends, 3*size, nil)
	if _, err := st.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v, want the end", err)
	}
}

// What a writer does not take at once follows in order, and so does what comes
// meanwhile; afterwards it is written at once again. The end comes after all.
func TestDeliverTheRest(t *testing.T) {
	p := newPeer(t, Server, Config{})
	st := p.serve(5)
	v := newValve()
	v.try = func(b []byte) (int, error) { return min(len(b), 4), nil }
	ends := deliverTo(st, v)

	p.say(data(5, "0123456789"))
	p.told(v)
	p.say(data(5, "abc"), data(5, "def")) // not tried: the others are first
	v.goOn <- result{n: 2}                // the writer takes what it likes
	p.told(v)
	v.goOn <- result{n: all}
	for started := time.Now(); ; {
		select {
		case <-v.writing:
			v.goOn <- result{n: all}
			continue
		default:
		}
		if _, busy := st.sinkState(); !busy {
			break
		}
		if time.Since(started) > 20*time.Second {
			t.Fatal("the rest was not written")
		}
		runtime.Gosched()
	}
	if got := v.got.String(); got != "0123456789abcdef" || v.tries != 1 {
		t.Fatalf("%q written, %d tries; want all in order after one", got, v.tries)
	}
	if held := p.s.held.Load(); held != 0 {
		t.Errorf("%d bytes held after all was written", held)
	}

	p.say(data(5, "ghi"))
	if got := v.got.String(); !strings.HasSuffix(got, "fghi") || v.tries != 2 {
		t.Errorf("%q written, %d tries; want the last at once", got, v.tries)
	}

	p.say(data(5, "jklmnop"))
	p.told(v)
	p.say(data(5, "qr"), frame{frameFIN, 5, ""})
	if delivering, _ := st.sinkState(); !delivering || len(ends) > 0 {
		t.Error("done before everything was written")
	}
	v.goOn <- result{n: 1}
	p.told(v)
	if delivering, _ := st.sinkState(); !delivering || len(ends) > 0 {
		t.Error("done before everything was written")
	}
	v.goOn <- result{n: all}
	select {
	case <-v.writing:
		v.goOn <- result{n: all}
		p.wantEnding(ends, 28, nil)
	case e := <-ends:
		if e != (ending{28, nil}) {
			t.Errorf("done with %v", e)
		}
	}
	if got := v.got.String(); got != "0123456789abcdefghijklmnopqr" {
		t.Errorf("%q written", got)
	}
}

// An error of the writer is the end, and nothing is written after it.
func TestDeliverWriterFails(t *testing.T) {
	broken := errors.New("broken")
	for _, in := range []string{"TryWrite", "Write"} {
		t.Run(in, func(t *testing.T) {
			p := newPeer(t, Server, Config{})
			st := p.serve(5)
			v := newValve()
			v.try = func([]byte) (int, error) { return 2, broken }
			if in == "Write" {
				v.try = func([]byte) (int, error) { return 0, nil }
			}
			ends := deliverTo(st, v)
			p.say(data(5, "0123456789"))
			if in == "Write" {
				p.told(v)
				p.say(data(5, "abc"))
				v.goOn <- result{2, broken}
			}
			p.wantEnding(ends, 2, broken)
			p.say(data(5, "more"), frame{frameFIN, 5, ""})
			p.settled()
			p.onlyEnding(ends)
			select {
			case <-v.writing:
				t.Error("another Write")
			default:
			}
			if got := v.got.String(); got != "01" || v.tries != 1 {
				t.Errorf("%q written, %d tries; want nothing after the error", got, v.tries)
			}
			st.Close()
			if held := p.s.held.Load(); held != 0 {
				t.Errorf("%d bytes held after the reset", held)
			}
		})
	}
}

// However a stream ends, the writer is let go of before done is called, once, and
// nothing is kept.
func TestDeliverReset(t *testing.T) {
	causes := map[string]struct {
		code Code
		end  func(p *peer, st *Stream)
	}{
		"peer's reset": {ResetByPeer, func(p *peer, _ *Stream) {
			p.s.handle(record{kind: recordReset, id: 5, code: ResetByPeer, reason: "rst"})
		}},
		"reset":         {Cancelled, func(_ *peer, st *Stream) { st.Reset(Cancelled, "test") }},
		"session's end": {SessionLost, func(p *peer, _ *Stream) { p.s.Close("over", 0) }},
	}
	for name, cause := range causes {
		for _, during := range []string{"nothing", "TryWrite", "Write"} {
			t.Run(name+" during "+during, func(t *testing.T) {
				p := newPeer(t, Server, Config{})
				st := p.serve(5)
				v := newValve()
				v.try = func([]byte) (int, error) { return 0, nil }
				if during == "TryWrite" {
					v.try = func([]byte) (int, error) {
						v.writing <- struct{}{}
						r := <-v.goOn
						return r.n, r.err
					}
				}
				ends := deliverTo(st, v)
				said := make(chan struct{})
				go func() {
					defer close(said)
					if during != "nothing" {
						p.say(data(5, "0123456789"))
					}
				}()
				if during == "Write" {
					<-said
					p.say(data(5, "and more"))
				}
				written := int64(0)
				if during != "nothing" {
					p.told(v)
				}
				cause.end(p, st)
				if delivering, _ := st.sinkState(); delivering != (during != "nothing") {
					t.Errorf("delivering %v after the end", delivering)
				}
				if during != "nothing" {
					p.onlyEnding(ends) // not yet
					written = 3
					v.goOn <- result{n: 3}
				}
				<-said
				var e ending
				select {
				case e = <-ends:
				case <-time.After(20 * time.Second):
					t.Fatal("done not called")
				}
				var reset *Error
				if e.n != written || !errors.As(e.err, &reset) || reset.Code != cause.code {
					t.Errorf("done with %d bytes, %v; want %d, %v", e.n, e.err, written, cause.code)
				}
				p.s.Close("over", 0)
				p.onlyEnding(ends)
				if held := p.s.held.Load(); held != 0 {
					t.Errorf("%d bytes held", held)
				}
				if v.tries > 1 {
					t.Errorf("%d tries", v.tries)
				}
			})
		}
	}
}

// What arrived before Deliver is delivered too.
func TestDeliverLate(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after []frame
		want          string
	}{
		{"data", []frame{data(5, "early")}, []frame{{frameFIN, 5, ""}}, "early"},
		{"data, end", []frame{data(5, "early"), {frameFIN, 5, ""}}, nil, "early"},
		{"end", []frame{{frameFIN, 5, ""}}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, Server, Config{})
			st := p.serve(5)
			p.say(tt.before...)
			v := newValve()
			ends := deliverTo(st, v)
			if tt.want != "" {
				p.told(v)
				v.goOn <- result{n: all}
			}
			p.say(tt.after...)
			p.wantEnding(ends, int64(len(tt.want)), nil)
			if got := v.got.String(); got != tt.want {
				t.Errorf("%q written, want %q", got, tt.want)
			}
			if held := p.s.held.Load(); held != 0 {
				t.Errorf("%d bytes held", held)
			}
		})
	}
}

// Where the link cuts what it receives does not matter.
func TestFramesInPieces(t *testing.T) {
	h := Header{KindDial, "t:1"}
	window := record{kind: recordWindow, id: 5, bytes: 300_000}.append(nil)
	b := frames(nil).add(frameSYN, 5, nil).add(framePSH, 5, h.append(nil)).
		add(frameNOP, 0, nil).add(framePSH, 5, nil).add(framePSH, 5, []byte("some ")).
		add(framePSH, controlID, window[:4]).
		add(framePSH, controlID, record{kind: recordListen, id: 1, reason: "a"}.append(window[4:])).
		add(frameUPD, 5, make([]byte, 8)).add(framePSH, 5, []byte("text")).add(frameFIN, 5, nil)
	test := func(pieces ...[]byte) {
		t.Helper()
		p := newPeer(t, Server, Config{})
		for _, piece := range pieces {
			p.hear(piece)
		}
		st, err := p.s.Accept(t.Context())
		if err != nil || st.Header() != h {
			t.Fatalf("accepted %+v, %v", st, err)
		}
		if got, err := io.ReadAll(st); string(got) != "some text" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		p.s.mu.Lock()
		credit := st.credit
		p.s.mu.Unlock()
		if credit != 300_000 {
			t.Errorf("credit %d", credit)
		}
		p.want(onControl(record{kind: recordListenFailed, id: 1, code: Denied, reason: "this end does not listen for others"}))
		if err := st.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
		p.want(frame{frameFIN, 5, ""})
		p.left(0)
		p.s.Close("over", 0)
		if t.Failed() {
			t.Fatalf("in pieces %x", pieces)
		}
	}
	for i := range len(b) {
		test(b[:i], b[i:])
	}
	var single [][]byte
	for i := range b {
		single = append(single, b[i:i+1])
	}
	test(single...)
}

// What a stream holds is given back at its reset.
func TestResetGivesBack(t *testing.T) {
	s := bare(newScript(nil), Config{})
	defer s.cancel(nil)
	st := newStream(s, 5, false)
	s.register(st)
	receive(t, s, 5, 100_000)
	st.Reset(OverBudget, "test")
	receive(t, s, 5, 1000)
	if !st.inbox.empty() || st.inbox.held != 0 || s.charged.Load() != 0 || s.streams[5] != nil {
		t.Errorf("%d bytes in the inbox, %d charged", st.inbox.held, s.charged.Load())
	}
}

// Nothing is kept for smux when that has ended.
func TestFramesAfterTheEnd(t *testing.T) {
	c := newSmuxConn(newScript(nil))
	c.Close()
	if c.put(frameFIN, 5); len(c.frames) > 0 {
		t.Errorf("%d bytes kept", len(c.frames))
	}
}

// The end of a session does not wait for windows, which are handed to the link
// without a word.
func TestFlushWithWindow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := bare(newScript(nil), Config{})
		defer s.cancel(nil)
		st := newStream(s, 5, false)
		s.mu.Lock()
		s.queue.idle = true
		s.queueWindow(st)
		s.mu.Unlock()
		started := time.Now()
		var flush sync.WaitGroup
		flush.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			s.drainQueue(ctx)
		})
		synctest.Wait()
		s.mu.Lock()
		s.appendRecords()
		s.mu.Unlock()
		flush.Wait()
		if took := time.Since(started); took > 0 {
			t.Errorf("waited for %v", took)
		}
	})
}

// A stream that has ended before smux hands it out is closed there, and the frame
// for that leaves by itself.
func TestEndedBeforeAccept(t *testing.T) {
	p := newPeer(t, Server, Config{})
	p.serve(5)
	p.s.frames.put(frameSYN, 7) // as if the session had forgotten it
	p.want(frame{frameFIN, 7, ""})
	p.sent()
}
