package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/mux/link"
	"culvert/mux/link/linktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a client and a server session over a carrier in memory.
type pair struct {
	client, server *Session
	cut            func()

	mu   sync.Mutex
	pipe *linktest.Pipe
}

func newPair(t testing.TB, client, server Config) *pair {
	t.Helper()
	p := &pair{}
	sessions := make(chan *Session, 1)
	registry := link.NewRegistry(link.RegistryConfig{Open: func(l *link.Link, _, _ string) {
		s, err := Server(l, server)
		if err != nil {
			t.Error(err)
			return
		}
		sessions <- s
		<-s.Done()
		s.Close("", 0)
	}})
	l := link.New(link.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- l.Maintain(ctx, link.Redial{Dial: func(_ context.Context, hello []byte) (link.Carrier, []byte, error) {
			reply, attach, _, err := registry.Admit("alice", "test", false, hello)
			if err != nil {
				return nil, nil, err
			}
			pipe := linktest.NewPipe(4, false)
			attach(pipe.Server)
			p.mu.Lock()
			p.pipe = pipe
			p.mu.Unlock()
			return pipe.Client, reply, nil
		}})
	}()
	var err error
	if p.client, err = Client(l, client); err != nil {
		t.Fatal(err)
	}
	p.server = <-sessions
	t.Cleanup(func() {
		p.client.Close("test over", time.Second)
		p.server.Close("test over", 0)
		cancel()
		<-done
		registry.Stop()
		registry.Wait()
	})
	p.cut = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pipe.Cut()
	}
	return p
}

// serve has f handle each stream that s accepts, until the test ends.
func serve(t testing.TB, s *Session, f func(*Stream)) {
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() {
		for {
			st, err := s.Accept(ctx)
			if err != nil {
				return
			}
			running.Go(func() { f(st) })
		}
	})
	t.Cleanup(func() { cancel(); s.Close("test over", 0); running.Wait() })
}

func echo(st *Stream) {
	defer st.Close()
	if st.Accept() != nil {
		return
	}
	if _, err := io.Copy(st, struct{ io.Reader }{st}); err == nil {
		st.CloseWrite()
	}
}

func open(t testing.TB, s *Session) *Stream {
	t.Helper()
	st, err := s.Open(context.Background(), Header{Kind: KindDial, Target: "target:1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func TestEchoWithCuts(t *testing.T) {
	p := newPair(t, Config{}, Config{})
	serve(t, p.server, echo)
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	cutter.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.cut()
			case <-stop:
				return
			}
		}
	})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			data := make([]byte, 4<<20)
			rng := rand.NewChaCha8([32]byte{byte(i)})
			rng.Read(data)
			st := open(t, p.client)
			var writer sync.WaitGroup
			writer.Go(func() {
				if _, err := st.Write(data); err != nil {
					t.Errorf("write: %v", err)
				}
				st.CloseWrite()
			})
			got := sha256.New()
			n, err := deliver(st, got)
			writer.Wait()
			if want := sha256.Sum256(data); err != nil || !bytes.Equal(got.Sum(nil), want[:]) {
				t.Errorf("echo of stream %d: %d bytes, %v", i, n, err)
			}
		})
	}
	clients.Wait()
	close(stop)
	cutter.Wait()
}

func TestRefusedAndReset(t *testing.T) {
	p := newPair(t, Config{}, Config{})
	dialling, release := make(chan struct{}), make(chan struct{})
	serve(t, p.server, func(st *Stream) {
		switch st.Header().Target {
		case "refuse:1":
			st.Refuse(Refused, "nobody there")
		case "reset:1":
			st.Accept()
			io.ReadFull(st, make([]byte, 3))
			st.Reset(ResetByPeer, "target reset")
		case "silent:1":
			<-st.Context().Done()
		case "slow:1":
			close(dialling)
			<-st.Context().Done()
			var e *Error
			if !errors.As(context.Cause(st.Context()), &e) || e.Code != Cancelled {
				t.Errorf("cause %v, want cancelled", context.Cause(st.Context()))
			}
			close(release)
		}
	})
	ctx := context.Background()
	code := func(err error) Code {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("error %v is no *Error", err)
		}
		return e.Code
	}
	st, _ := p.client.Open(ctx, Header{KindDial, "refuse:1"})
	if err := st.Reply(ctx); code(err) != Refused {
		t.Errorf("Reply: %v", err)
	}
	st, _ = p.client.Open(ctx, Header{KindDial, "reset:1"})
	if err := st.Reply(ctx); err != nil {
		t.Errorf("Reply: %v", err)
	}
	st.Write([]byte("abc"))
	if _, err := io.ReadAll(st); code(err) != ResetByPeer {
		t.Errorf("read: %v, want reset", err)
	}
	st, _ = p.client.Open(ctx, Header{KindDial, "silent:1"})
	short, cancel := context.WithTimeout(ctx, 0)
	defer cancel()
	if err := st.Reply(short); code(err) != TimedOut {
		t.Errorf("Reply: %v, want timed out", err)
	}
	st, _ = p.client.Open(ctx, Header{KindDial, "slow:1"})
	<-dialling
	st.Reset(Cancelled, "user left")
	<-release
}

func TestHalfClose(t *testing.T) {
	p := newPair(t, Config{}, Config{})
	asked := make(chan string, 1)
	serve(t, p.server, func(st *Stream) {
		st.Accept()
		b, err := io.ReadAll(st)
		if err != nil {
			t.Errorf("question: %v", err)
		}
		asked <- string(b)
		io.WriteString(st, "answer") // after the opener's direction ended
		st.CloseWrite()
		<-st.Context().Done()
		if err := context.Cause(st.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("clean end has cause %v", err)
		}
		close(asked)
	})
	st := open(t, p.client)
	io.WriteString(st, "question")
	st.CloseWrite()
	if _, err := st.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	b, err := io.ReadAll(st)
	if string(b) != "answer" || err != nil || <-asked != "question" {
		t.Errorf("got %q, %v", b, err)
	}
	<-st.Context().Done()
	<-asked // the server's end is over too
	if n := p.client.NumStreams() + p.server.NumStreams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

// A session that ends must not look like the end of a file.
func TestSessionLostIsNoEOF(t *testing.T) {
	p := newPair(t, Config{}, Config{})
	serve(t, p.server, func(st *Stream) {
		st.Accept()
		io.WriteString(st, "half of ")
		<-st.Context().Done()
	})
	st := open(t, p.client)
	if _, err := io.ReadFull(st, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	go p.server.Close("server restarts", 0)
	_, err := io.ReadAll(st)
	if CodeOf(err) != SessionLost {
		t.Errorf("read: %v, want session lost", err)
	}
	if _, err := st.Write([]byte("x")); CodeOf(err) != SessionLost {
		t.Errorf("write: %v, want session lost", err)
	}
	if _, err := p.client.Open(t.Context(), Header{Kind: KindDial}); CodeOf(err) != SessionLost {
		t.Errorf("open: %v, want session lost", err)
	}
}

// fill writes to st as much as its peer, a stream of far, takes unread, and waits
// until that has arrived or st was reset.
func fill(t *testing.T, st *Stream, far *Session) {
	st.sess.mu.Lock()
	n := st.credit - st.sent
	st.sess.mu.Unlock()
	if _, err := st.Write(make([]byte, n)); err != nil && CodeOf(err) != OverBudget {
		t.Errorf("fill: %v", err)
	}
	for started := time.Now(); st.ctx.Err() == nil; runtime.Gosched() {
		far.mu.Lock()
		peer := far.streams[st.id]
		arrived := peer != nil && (peer.received >= initialWindow || peer.reset != nil)
		far.mu.Unlock()
		if arrived {
			return
		}
		if time.Since(started) > 20*time.Second {
			t.Error("what fills a stream does not arrive")
			return
		}
	}
}

// Streams that nobody reads neither stop others nor take more than their
// windows.
func TestUnreadStreams(t *testing.T) {
	const stuck = 200
	p := newPair(t, Config{}, Config{})
	serve(t, p.server, func(st *Stream) {
		if st.Header().Target == "stuck:1" {
			st.Accept()
			<-st.Context().Done()
			return
		}
		echo(st)
	})
	var fillers sync.WaitGroup
	for range stuck {
		st, err := p.client.Open(t.Context(), Header{KindDial, "stuck:1"})
		if err != nil {
			t.Fatal(err)
		}
		fillers.Go(func() { fill(t, st, p.server) })
	}
	fillers.Wait()
	if held := p.server.held.Load(); held > DefaultMemory || held < stuck*initialWindow*9/10 {
		t.Errorf("%d bytes held for %d unread streams", held, stuck)
	}
	st := open(t, p.client)
	start := time.Now()
	const pings = 100
	for range pings {
		st.Write([]byte("ping"))
		if _, err := io.ReadFull(st, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("echo beside %d unread streams: %v on average", stuck, time.Since(start)/pings)
	if n := p.server.NumStreams(); n != stuck+1 {
		t.Errorf("%d streams left, want all %d", n, stuck+1)
	}
}

// Past the budget the stream that is stuck for longest is reset, the session is
// not.
func TestBudget(t *testing.T) {
	for name, cfg := range map[string]Config{
		"session": {Memory: 1 << 20},
		"process": {Budget: NewBudget(1 << 20)},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, Config{}, cfg)
			serve(t, p.server, func(st *Stream) {
				if st.Header().Target == "stuck:1" {
					st.Accept()
					<-st.Context().Done()
					return
				}
				echo(st)
			})
			var streams []*Stream
			for range 8 { // 2 MiB of windows
				st, err := p.client.Open(t.Context(), Header{KindDial, "stuck:1"})
				if err != nil {
					t.Fatal(err)
				}
				// Until its header is read a stream is not stuck.
				if err := st.Reply(t.Context()); err != nil {
					t.Fatal(err)
				}
				fill(t, st, p.server)
				streams = append(streams, st)
			}
			<-streams[3].Context().Done()
			resets := 0
			for i, st := range streams {
				switch err := context.Cause(st.Context()); {
				case err == nil:
				case CodeOf(err) != OverBudget || i != resets:
					t.Errorf("stream %d reset after %d others: %v", i, resets, err)
				default:
					resets++
				}
			}
			if resets < 4 || resets > 6 {
				t.Errorf("%d streams reset, want half of 8 or a little more", resets)
			}
			if held := p.server.held.Load(); held > 1<<20+64<<10 {
				t.Errorf("%d bytes held", held)
			}
			st := open(t, p.client)
			st.Write([]byte("ping"))
			if _, err := io.ReadFull(st, make([]byte, 4)); err != nil {
				t.Errorf("session after resets: %v", err)
			}
		})
	}
}

func TestGoAwayAndLimit(t *testing.T) {
	p := newPair(t, Config{}, Config{MaxStreams: 2})
	serve(t, p.server, echo)
	first, second := open(t, p.client), open(t, p.client)
	if first.Reply(t.Context()) != nil || second.Reply(t.Context()) != nil {
		t.Fatal("streams within the limit refused")
	}
	if _, err := p.client.Open(t.Context(), Header{Kind: KindDial}); CodeOf(err) != Limit {
		t.Errorf("stream beyond the limit that the server has announced: %v", err)
	}
	p.server.GoAway("restarting")
	<-p.client.PeerGoingAway()
	if _, err := p.client.Open(t.Context(), Header{Kind: KindDial}); !errors.Is(err, ErrGoingAway) {
		t.Errorf("open: %v, want going away", err)
	}
	first.Write([]byte("still"))
	if _, err := io.ReadFull(first, make([]byte, 5)); err != nil {
		t.Errorf("old stream: %v", err)
	}
}

func TestListen(t *testing.T) {
	stopped := make(chan string, 2)
	p := newPair(t, Config{}, Config{Listen: func(_ context.Context, _ uint32, bind string) (Listener, error) {
		if bind == "127.0.0.1:1" {
			return nil, &Error{Denied, "privileged port"}
		}
		return newListener("127.0.0.1:4711", func() { stopped <- bind }), nil
	}})
	if _, err := p.client.Listen(t.Context(), "127.0.0.1:1"); CodeOf(err) != Denied {
		t.Errorf("Listen: %v", err)
	}
	f, err := p.client.Listen(t.Context(), "127.0.0.1:0")
	if err != nil || f.Address != "127.0.0.1:4711" {
		t.Fatalf("Listen: %+v, %v", f, err)
	}
	p.client.Unlisten(f.Number)
	if got := <-stopped; got != "127.0.0.1:0" {
		t.Errorf("stopped %q", got)
	}
	if _, err := p.client.Listen(t.Context(), "127.0.0.1:2"); err != nil {
		t.Fatal(err)
	}
	p.client.Close("over", time.Second)
	if got := <-stopped; got != "127.0.0.1:2" {
		t.Errorf("at the session's end stopped %q", got)
	}
}

func BenchmarkBulk(b *testing.B) {
	p := newPair(b, Config{}, Config{})
	serve(b, p.server, func(st *Stream) {
		st.Accept()
		deliver(st, io.Discard)
		st.CloseWrite()
	})
	st := open(b, p.client)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := st.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	st.CloseWrite()
	io.Copy(io.Discard, st)
}

// An opener at the peer's limit that has reset a stream may open another at once: the peer
// learns of the reset first.
func TestOpenAfterReset(t *testing.T) {
	p := newPeer(t, Client, Config{})
	p.say(onControl(record{kind: recordMaxStreams, id: 1}))
	for id := uint32(5); id < 405; id += 2 {
		st := p.open(id)
		p.s.mu.Lock() // nobody else writes the reset
		p.s.queue.idle = false
		p.s.resetLocked(st, &Error{Code: Cancelled})
		p.s.tellReset(st)
		p.s.mu.Unlock()
		next := make(chan error, 1)
		go func() {
			st, err := p.s.Open(t.Context(), Header{Kind: KindDial})
			if err == nil {
				st.Reset(Cancelled, "")
			}
			next <- err
		}()
		told := false
		for opened := false; !opened; {
			switch f := p.next(); f {
			case reset(id, Cancelled, ""):
				told = true
			case frame{frameSYN, id + 2, ""}:
				opened = true
			}
		}
		if err := <-next; err != nil || !told {
			t.Fatalf("stream %d opened before the reset of %d was told, %v", id+2, id, err)
		}
		p.left(0)
		id += 2
		p.drain()
	}
}
