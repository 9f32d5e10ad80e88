package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/test/bubble"
)

// fakeSession hands out streams in memory; the far ends arrive on opened.
type fakeSession struct {
	opened chan *fakeStream
	done   chan struct{}
}

func newFakeSession() *fakeSession {
	return &fakeSession{opened: make(chan *fakeStream, 100), done: make(chan struct{})}
}

func (s *fakeSession) Done() <-chan struct{} { return s.done }

func (s *fakeSession) Open(ctx context.Context, h mux.Header) (stream, error) {
	select {
	case <-s.done:
		return nil, &mux.Error{Code: mux.SessionLost}
	default:
	}
	near, far := newFakeStreams(h)
	s.opened <- far
	return near, nil
}

// testPeer is a session at the server whose link is attached, and answers
// probes, as told.
type testPeer struct {
	*peer
	session          *fakeSession
	attached, silent atomic.Bool
}

func newPeer(t testing.TB, identity string) *testPeer {
	logger, _ := newJournal(t)
	p := &testPeer{session: newFakeSession()}
	p.attached.Store(true)
	p.peer = &peer{
		session: p.session, id: "id", identity: identity, log: newEvents(Settings{Logger: logger}),
		usage:    testUsages(t, auth.Limits{}).join(identity),
		attached: p.attached.Load,
		probe: func(context.Context) error {
			if p.silent.Load() {
				return context.DeadlineExceeded
			}
			return nil
		},
	}
	return p
}

func newTestListeners(t testing.TB, guard *auth.Guard) *listeners {
	logger, _ := newJournal(t)
	ls := newListeners(guard, nil, defaults(t, Settings{Logger: logger}))
	t.Cleanup(func() {
		ls.close()
		ls.conns.Wait()
	})
	return ls
}

func mustListen(t testing.TB, ls *listeners, p *testPeer, forward uint32, bind string) (addr string, stop func()) {
	t.Helper()
	l, err := ls.listen(t.Context(), p.peer, forward, bind)
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr(), l.Close
}

// checkForward makes a connection to addr and expects it on p as a stream of
// this forward.
func checkForward(t testing.TB, addr string, p *testPeer, forward uint32) {
	t.Helper()
	app, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	app.SetDeadline(time.Now().Add(20 * time.Second))
	far := within(t, p.session.opened, "stream")
	if want := (mux.Header{Kind: mux.KindForward, Target: strconv.Itoa(int(forward))}); far.Header() != want {
		t.Errorf("header %v, want %v", far.Header(), want)
	}
	far.Accept()
	io.WriteString(far, "hello")
	far.CloseWrite()
	if b, err := io.ReadAll(app); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestListen(t *testing.T) {
	ls := newTestListeners(t, everything(t))
	p := newPeer(t, "alice")
	addr, stop := mustListen(t, ls, p, 7, "127.0.0.1:0")
	checkForward(t, addr, p, 7)

	// Its session keeps it, also from itself.
	if _, err := ls.listen(t.Context(), p.peer, 8, addr); mux.CodeOf(err) != mux.Refused {
		t.Errorf("second listen: %v", err)
	}
	stop()
	ls.accepting.Wait()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("still listening")
	}
	// And the address is free.
	again, _ := mustListen(t, ls, p, 9, addr)
	checkForward(t, again, p, 9)
	ls.release(p.peer)
	ls.accepting.Wait()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("still listening without a session")
	}
	if _, err := ls.listen(t.Context(), p.peer, 10, addr); mux.CodeOf(err) != mux.Stopping {
		t.Errorf("listen of an ended session: %v", err)
	}
}

func TestListenRefusals(t *testing.T) {
	taken := listenLoopback(t).Addr().String()
	local, all, deny := everything(t), rules(t, "", "allow *:*"), rules(t, "", "deny *:*")
	for _, tt := range []struct {
		name, bind string
		guard      *auth.Guard
		code       mux.Code
	}{
		{"not loopback", "0.0.0.0:0", local, mux.Denied},
		{"all addresses", "*:0", local, mux.Denied},
		{"all addresses, empty", ":0", local, mux.Denied},
		{"IPv4 in IPv6, all", "[::ffff:0.0.0.0]:0", local, mux.Denied},
		{"policy", "127.0.0.1:0", deny, mux.Denied},
		{"taken by others", taken, local, mux.Refused},
		{"malformed", "127.0.0.1", local, mux.Unresolvable},
		{"port", "127.0.0.1:70000", local, mux.Unresolvable},
		{"not ours", "192.0.2.1:0", all, mux.Denied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ls := newTestListeners(t, tt.guard)
			l, err := ls.listen(t.Context(), newPeer(t, "alice").peer, 1, tt.bind)
			if mux.CodeOf(err) != tt.code || err == nil {
				t.Errorf("got %q, %v; want %v", l, err, tt.code)
			}
		})
	}
}

// An address is free when its listener has been closed: a client may ask for it again in
// the same breath.
func TestListenAgainAtOnce(t *testing.T) {
	ls := newTestListeners(t, everything(t))
	p := newPeer(t, "alice")
	addr, stop := mustListen(t, ls, p, 1, "127.0.0.1:0")
	for range 100 {
		stop()
		_, stop = mustListen(t, ls, p, 1, addr)
	}
}

func TestListenLimit(t *testing.T) {
	ls := newTestListeners(t, everything(t))
	ls.settings.MaxForwards = 2
	p := newPeer(t, "alice")
	mustListen(t, ls, p, 1, "127.0.0.1:0")
	_, stop := mustListen(t, ls, p, 2, "127.0.0.1:0")
	if _, err := ls.listen(t.Context(), p.peer, 3, "127.0.0.1:0"); mux.CodeOf(err) != mux.Limit {
		t.Errorf("third listen: %v", err)
	}
	stop()
	mustListen(t, ls, p, 4, "127.0.0.1:0")
	// A listen that failed does not count.
	if _, err := ls.listen(t.Context(), newPeer(t, "bob").peer, 5, "127.0.0.1"); err == nil {
		t.Error("malformed address accepted")
	}
}

func TestTakeover(t *testing.T) {
	t.Run("detached holder", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		old, fresh := newPeer(t, "alice"), newPeer(t, "alice")
		l, err := ls.listen(t.Context(), old.peer, 1, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr()
		old.attached.Store(false)
		if got, _ := mustListen(t, ls, fresh, 5, addr); got != addr {
			t.Errorf("listening at %s, want %s", got, addr)
		}
		checkForward(t, addr, fresh, 5)
		if e := within(t, l.Ended(), "end of the former lease"); e.Code != mux.Refused || e.Reason != "taken over by another session of this identity" {
			t.Errorf("the former holder is told %v", e)
		}
		// The former holder's end changes nothing any more.
		l.Close()
		ls.release(old.peer)
		checkForward(t, addr, fresh, 5)
	})
	t.Run("silent holder", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		old, fresh := newPeer(t, "alice"), newPeer(t, "alice")
		addr, _ := mustListen(t, ls, old, 1, "127.0.0.1:0")
		old.silent.Store(true)
		mustListen(t, ls, fresh, 1, addr)
		checkForward(t, addr, fresh, 1)
	})
	t.Run("live holder", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		old, fresh := newPeer(t, "alice"), newPeer(t, "alice")
		addr, _ := mustListen(t, ls, old, 1, "127.0.0.1:0")
		_, err := ls.listen(t.Context(), fresh.peer, 1, addr)
		var e *mux.Error
		if !errors.As(err, &e) || e.Code != mux.Refused || e.Reason != "address in use by another session" {
			t.Errorf("got %v", err)
		}
		checkForward(t, addr, old, 1)
	})
	t.Run("another identity", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		old, fresh := newPeer(t, "alice"), newPeer(t, "bob")
		addr, _ := mustListen(t, ls, old, 1, "127.0.0.1:0")
		old.attached.Store(false)
		if _, err := ls.listen(t.Context(), fresh.peer, 1, addr); mux.CodeOf(err) != mux.Refused {
			t.Errorf("got %v", err)
		}
	})
	t.Run("overlapping address", func(t *testing.T) {
		ls := newTestListeners(t, rules(t, "", "allow *:*"))
		old, fresh := newPeer(t, "alice"), newPeer(t, "alice")
		addr, _ := mustListen(t, ls, old, 1, "0.0.0.0:0")
		_, port, _ := net.SplitHostPort(addr)
		old.attached.Store(false)
		want := "127.0.0.1:" + port
		if got, _ := mustListen(t, ls, fresh, 1, want); got != want {
			t.Errorf("listening at %s, want %s", got, want)
		}
		checkForward(t, want, fresh, 1)
	})
	t.Run("connections wait for the new session", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		old, fresh := newPeer(t, "alice"), newPeer(t, "alice")
		addr, _ := mustListen(t, ls, old, 1, "127.0.0.1:0")
		old.attached.Store(false)
		app, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer app.Close()
		mustListen(t, ls, fresh, 2, addr)
		far := within(t, fresh.session.opened, "stream of the waiting connection")
		far.Reset(mux.ResetByPeer, "enough")
		if len(old.session.opened) > 0 {
			t.Error("opened on the session without a carrier")
		}
	})
	t.Run("connections wait for the carrier", func(t *testing.T) {
		ls := newTestListeners(t, everything(t))
		p := newPeer(t, "alice")
		addr, _ := mustListen(t, ls, p, 1, "127.0.0.1:0")
		p.attached.Store(false)
		app, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer app.Close()
		p.attached.Store(true)
		ls.notify()
		far := within(t, p.session.opened, "stream of the waiting connection")
		far.Reset(mux.ResetByPeer, "enough")
	})
}

// A holder has as long to show that it is there as a carrier has: one ping that is late
// costs it nothing.
func TestTakeoverProbe(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ls := newListeners(everything(t), nil, defaults(t, Settings{}))
		p := newPeer(t, "alice")
		p.probe = func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		start := time.Now()
		if ls.alive(t.Context(), p.peer) || time.Since(start) != 10*time.Second {
			t.Errorf("judged after %v", time.Since(start))
		}
	})
}
