package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux"
	"culvert/test/bubble"
)

// fakeListener accepts what is given to it.
type fakeListener struct {
	results chan any // error or net.Conn
	closed  chan struct{}
	once    sync.Once
	accepts atomic.Int32
}

func newFakeListener() *fakeListener {
	return &fakeListener{results: make(chan any, 100), closed: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	l.accepts.Add(1)
	select {
	case r := <-l.results:
		if err, ok := r.(error); ok {
			return nil, err
		}
		return r.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// newForwarder is a forwarder that opens its streams on s.
func newForwarder(t testing.TB, ln net.Listener, s session) (*forwarder, *journal) {
	logger, journal := newJournal(t)
	return &forwarder{
		listener: ln, target: "target:1",
		open: func(ctx context.Context, _ net.Addr) (stream, string, error) {
			st, err := s.Open(ctx, mux.Header{Kind: mux.KindDial, Target: "target:1"})
			return st, "id", err
		},
		connectWait: 30 * time.Second, openTimeout: 10 * time.Second,
		pending: make(chan struct{}, 10), log: newEvents(Settings{Logger: logger}),
	}, journal
}

// start runs f until the test ends.
func (f *forwarder) start(t testing.TB) {
	ctx, cancel := context.WithCancel(t.Context())
	var running, conns sync.WaitGroup
	running.Go(func() { f.run(ctx, &conns) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		conns.Wait()
	})
}

func TestForwardSurvivesAcceptErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ln, s := newFakeListener(), newFakeSession()
		f, journal := newForwarder(t, ln, s)
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.EMFILE} {
			ln.results <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)}
		}
		app, ours := net.Pipe()
		ln.results <- ours
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var running, conns sync.WaitGroup
		running.Go(func() { f.run(ctx, &conns) })
		far := <-s.opened
		if d := time.Since(start); d == 0 || d > time.Second {
			t.Errorf("accepted after %v", d)
		}
		journal.find(t, "level=WARN", `msg="accept failed"`)
		far.Accept()
		app.Close()
		far.CloseWrite()
		cancel()
		running.Wait()
		conns.Wait()
	})
}

func TestForwardBoundsPending(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ln, s := newFakeListener(), newFakeSession()
		f, journal := newForwarder(t, ln, s)
		f.pending = make(chan struct{}, 2)
		ctx, cancel := context.WithCancel(t.Context())
		var running, conns sync.WaitGroup
		running.Go(func() { f.run(ctx, &conns) })
		for range 4 {
			app, ours := net.Pipe()
			defer app.Close()
			ln.results <- ours
		}
		synctest.Wait()
		if n := len(s.opened); n != 2 {
			t.Errorf("%d opens pending, want 2", n)
		}
		journal.find(t, `msg="limit reached"`)
		// A reply makes room; the connection goes on.
		first := <-s.opened
		first.Accept()
		synctest.Wait()
		if n := len(s.opened); n != 2 {
			t.Errorf("%d opens pending, want 2", n)
		}
		if first.Context().Err() != nil {
			t.Error("the accepted connection did not go on")
		}
		cancel()
		running.Wait()
		first.Reset(mux.ResetByPeer, "enough")
		conns.Wait() // the others get no reply in time
	})
}

// A connection without a session waits, and is reset when none comes.
func TestForwardWaitsForSession(t *testing.T) {
	ln := listenLoopback(t)
	f, journal := newForwarder(t, ln, nil)
	s := newFakeSession()
	up := make(chan struct{})
	f.open = func(ctx context.Context, _ net.Addr) (stream, string, error) {
		select {
		case <-up:
			st, err := s.Open(ctx, mux.Header{})
			return st, "id", err
		case <-ctx.Done():
			return nil, "", errNoSession
		}
	}
	f.start(t)
	app, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	close(up)
	far := within(t, s.opened, "stream")
	far.Accept()
	io.WriteString(far, "welcome")
	far.CloseWrite()
	if b, err := io.ReadAll(app); string(b) != "welcome" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	app.Close()
	journal.find(t, `msg="stream closed"`, "received_bytes=7")
}

func TestForwardGivesUp(t *testing.T) {
	ln := listenLoopback(t)
	f, journal := newForwarder(t, ln, nil)
	f.connectWait = 20 * time.Millisecond
	f.open = func(ctx context.Context, _ net.Addr) (stream, string, error) {
		<-ctx.Done()
		return nil, "", errNoSession
	}
	f.start(t)
	wantReset(t, ln.Addr().String())
	journal.find(t, "level=WARN", `msg="target refused"`, "target=target:1", errNoSession.Error())
}

func TestForwardLogsRefusal(t *testing.T) {
	ln, s := listenLoopback(t), newFakeSession()
	f, journal := newForwarder(t, ln, s)
	f.start(t)
	app, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	app.SetDeadline(time.Now().Add(20 * time.Second))
	within(t, s.opened, "stream").Refuse(mux.Unresolvable, "no such host")
	if _, err := io.ReadAll(app); !isReset(err) {
		t.Errorf("application sees %v, want a reset", err)
	}
	journal.find(t, "level=WARN", `msg="target refused"`, "target=target:1", "remote=127.0.0.1:", "stream=1",
		"code=unresolvable", `reason="no such host"`)
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i := range 100 {
		top := min(5*time.Millisecond<<min(i, 20), time.Second)
		if d := b.next(5*time.Millisecond, time.Second); d <= 0 || d > top {
			t.Errorf("attempt %d waits %v, at most %v", i, d, top)
		}
	}
	b.reset()
	if d := b.next(5*time.Millisecond, time.Second); d > 5*time.Millisecond {
		t.Errorf("waits %v after success", d)
	}
}

func defaults(t testing.TB, s Settings) Settings {
	t.Helper()
	if err := s.complete(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSettings(t *testing.T) {
	s := defaults(t, Settings{Heartbeat: time.Second, Grace: -1})
	if s.Heartbeat != time.Second || s.Grace != 0 || s.ResumeWindow == 0 || s.MaxStreams == 0 || s.Logger == nil {
		t.Errorf("defaults are %+v", s)
	}
	wrong := Settings{DialTimeout: -1, Memory: -1}
	if err := wrong.complete(); !errors.Is(err, ErrConfig) || strings.Count(err.Error(), "negative") != 2 {
		t.Errorf("negative settings: %v", err)
	}
	for f, want := range map[Forward]string{
		{Port: 5432, Target: "db.internal:5432"}:      "localhost:5432:db.internal:5432",
		{Bind: "::1", Port: 80, Target: "[::1]:8080"}: "[::1]:80:[::1]:8080",
	} {
		if f.String() != want || f.check() != nil {
			t.Errorf("%q, %v; want %q", f, f.check(), want)
		}
	}
	for _, f := range []Forward{{Port: -1, Target: "a:1"}, {Port: 65536, Target: "a:1"}, {Port: 1, Target: "a"}, {Port: 1, Target: "a:0"}} {
		if err := f.check(); !errors.Is(err, ErrConfig) {
			t.Errorf("%v: %v", f, err)
		}
	}
}
