package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"culvert/mux"
	"culvert/test/bubble"
)

// startRelay relays conn and st as the acceptor does; the result arrives when
// the relay has ended.
func startRelay(conn net.Conn, st stream) (*relay, <-chan error) {
	r := &relay{conn: conn, stream: st}
	done := make(chan error, 1)
	go func() { done <- r.run(context.Background()) }()
	return r, done
}

func TestRelayHalfClose(t *testing.T) {
	t.Run("connection first", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		r, done := startRelay(ours, st)
		io.WriteString(app, "question")
		app.CloseWrite()
		if b, err := io.ReadAll(far); string(b) != "question" || err != nil {
			t.Fatalf("far end read %q, %v", b, err)
		}
		// The other direction is untouched.
		io.WriteString(far, "answer")
		far.CloseWrite()
		if b, err := io.ReadAll(app); string(b) != "answer" || err != nil {
			t.Fatalf("application read %q, %v", b, err)
		}
		within(t, done, "relay")
		if r.sent != 8 || r.received != 6 {
			t.Errorf("counted %d and %d bytes", r.sent, r.received)
		}
	})
	t.Run("stream first", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		_, done := startRelay(ours, st)
		io.WriteString(far, "greeting")
		far.CloseWrite()
		if b, err := io.ReadAll(app); string(b) != "greeting" || err != nil {
			t.Fatalf("application read %q, %v", b, err)
		}
		io.WriteString(app, "reply")
		app.CloseWrite()
		if b, err := io.ReadAll(far); string(b) != "reply" || err != nil {
			t.Fatalf("far end read %q, %v", b, err)
		}
		within(t, done, "relay")
	})
}

// A reset of the stream, or its session's loss, is a reset for the application,
// in whatever state its connection is.
func TestRelayStreamResetIsTCPReset(t *testing.T) {
	lost := func(st, _ *fakeStream) {
		st.in.end(&mux.Error{Code: mux.SessionLost})
		st.out.end(&mux.Error{Code: mux.SessionLost})
		st.end(&mux.Error{Code: mux.SessionLost})
	}
	reset := func(_, far *fakeStream) { far.Reset(mux.ResetByPeer, "target went away") }
	for name, cut := range map[string]func(st, far *fakeStream){"reset": reset, "session lost": lost} {
		t.Run(name+"/idle", func(t *testing.T) {
			app, ours := tcpPair(t)
			st, far := newFakeStreams(mux.Header{})
			_, done := startRelay(ours, st)
			cut(st, far)
			if _, err := io.ReadAll(app); !isReset(err) {
				t.Errorf("application sees %v, want a reset", err)
			}
			within(t, done, "relay")
		})
		t.Run(name+"/application ended its direction", func(t *testing.T) {
			app, ours := tcpPair(t)
			st, far := newFakeStreams(mux.Header{})
			_, done := startRelay(ours, st)
			app.CloseWrite()
			io.ReadAll(far)
			cut(st, far)
			if _, err := io.ReadAll(app); !isReset(err) {
				t.Errorf("application sees %v, want a reset", err)
			}
			within(t, done, "relay")
		})
		t.Run(name+"/stream ended its direction", func(t *testing.T) {
			app, ours := tcpPair(t)
			st, far := newFakeStreams(mux.Header{})
			_, done := startRelay(ours, st)
			far.CloseWrite()
			io.ReadAll(app)
			cut(st, far)
			within(t, done, "relay")
			for err := error(nil); !isReset(err); {
				if _, err = app.Write([]byte("x")); err != nil && !isReset(err) {
					t.Fatal(err)
				}
			}
		})
		t.Run(name+"/application does not read", func(t *testing.T) {
			app, ours := tcpPair(t)
			ours.SetWriteBuffer(4 << 10)
			app.SetReadBuffer(4 << 10)
			st, far := newFakeStreams(mux.Header{})
			_, done := startRelay(ours, st)
			go far.Write(make([]byte, 16<<20)) // ends with the reset
			for far.out.fill() < far.out.most {
				runtime.Gosched()
			}
			cut(st, far)
			within(t, done, "relay")
			if _, err := io.Copy(io.Discard, app); !isReset(err) {
				t.Errorf("application sees %v, want a reset", err)
			}
		})
		t.Run(name+"/nobody reads what the application sends", func(t *testing.T) {
			app, ours := tcpPair(t)
			st, far := newFakeStreams(mux.Header{})
			_, done := startRelay(ours, st)
			failed := make(chan error, 1)
			go func() {
				_, err := app.Write(make([]byte, 64<<20))
				failed <- err
			}()
			for st.out.fill() < st.out.most {
				runtime.Gosched()
			}
			cut(st, far)
			if err := within(t, failed, "application's write"); !isReset(err) {
				t.Errorf("application sees %v, want a reset", err)
			}
			within(t, done, "relay")
		})
	}
}

func (h *half) fill() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.buf)
}

// A reset by the application is a reset for the far end, with a reason.
func TestRelayConnectionResetIsStreamReset(t *testing.T) {
	want := func(t *testing.T, far *fakeStream) {
		t.Helper()
		<-far.Context().Done()
		var e *mux.Error
		if !errors.As(context.Cause(far.Context()), &e) || e.Code != mux.ResetByPeer || e.Reason == "" {
			t.Errorf("far end sees %v, want a reset with a reason", context.Cause(far.Context()))
		}
	}
	t.Run("idle", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		_, done := startRelay(ours, st)
		abort(app)
		within(t, done, "relay")
		want(t, far)
	})
	t.Run("after its end of file", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		_, done := startRelay(ours, st)
		app.CloseWrite()
		io.ReadAll(far)
		abort(app)
		within(t, done, "relay")
		want(t, far)
	})
	t.Run("while it is written to", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		_, done := startRelay(ours, st)
		go far.Write(make([]byte, 64<<20))
		io.ReadFull(app, make([]byte, 1<<20))
		abort(app)
		within(t, done, "relay")
		want(t, far)
	})
	t.Run("closed with bytes to come", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		_, done := startRelay(ours, st)
		app.Close()
		io.ReadAll(far) // its end of file
		for {
			if _, err := far.Write([]byte("nobody there")); err != nil {
				break
			}
		}
		within(t, done, "relay")
		want(t, far)
	})
}

func TestRelayTransfer(t *testing.T) {
	app, ours := tcpPair(t)
	st, far := newFakeStreams(mux.Header{})
	_, done := startRelay(ours, st)
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var wg sync.WaitGroup
	for _, dir := range []struct {
		w io.Writer
		r io.Reader
	}{{app, far}, {far, app}} {
		wg.Go(func() {
			dir.w.Write(data)
			dir.w.(interface{ CloseWrite() error }).CloseWrite()
		})
		wg.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, dir.r)
			if err != nil || n != int64(len(data)) || !bytes.Equal(h.Sum(nil), sum(data)) {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
		})
	}
	wg.Wait()
	within(t, done, "relay")
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// Idle relays cost two goroutines each and no buffers.
func TestRelayIdleMemory(t *testing.T) {
	const count = 400
	type pair struct {
		app, ours *net.TCPConn
		far       *fakeStream
		done      <-chan error
	}
	pairs := make([]pair, count)
	var streams [count]*fakeStream
	for i := range pairs {
		pairs[i].app, pairs[i].ours = tcpPair(t)
		streams[i], pairs[i].far = newFakeStreams(mux.Header{})
	}
	usage := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before, goroutines := usage(), runtime.NumGoroutine()
	for i := range pairs {
		_, pairs[i].done = startRelay(pairs[i].ours, streams[i])
	}
	// Something has been through both directions before they idle.
	for _, p := range pairs {
		io.WriteString(p.app, "x")
		p.far.Read(make([]byte, 1))
		io.WriteString(p.far, "x")
		p.app.Read(make([]byte, 1))
	}
	each := (usage() - before) / count
	if n := runtime.NumGoroutine() - goroutines; n > 2*count {
		t.Errorf("%d goroutines for %d relays", n, count)
	}
	// The fake's copy buffer is part of it.
	if each > 24<<10 {
		t.Errorf("an idle relay costs %d bytes", each)
	}
	t.Logf("an idle relay costs %d bytes", each)
	for _, p := range pairs {
		p.app.CloseWrite()
		p.far.CloseWrite()
		within(t, p.done, "relay")
	}
}

// opened relays as the opener does.
func opened(conn net.Conn, st stream) <-chan error {
	r := &relay{conn: conn, stream: st, replied: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- r.run(context.Background()) }()
	return done
}

func TestRelayOpenRefused(t *testing.T) {
	app, ours := tcpPair(t)
	st, far := newFakeStreams(mux.Header{})
	done := opened(ours, st)
	far.Refuse(mux.Unreachable, "no route")
	var e *mux.Error
	if err := within(t, done, "relay"); !errors.As(err, &e) || e.Code != mux.Unreachable {
		t.Errorf("relay returned %v", err)
	}
	if _, err := io.ReadAll(app); !isReset(err) {
		t.Errorf("application sees %v, want a reset", err)
	}
}

// What the application sends before the reply travels at once.
func TestRelaySendsBeforeReply(t *testing.T) {
	app, ours := tcpPair(t)
	st, far := newFakeStreams(mux.Header{})
	done := opened(ours, st)
	io.WriteString(app, "early")
	b := make([]byte, 5)
	if _, err := io.ReadFull(far, b); err != nil || string(b) != "early" {
		t.Fatalf("far end read %q, %v", b, err)
	}
	far.Accept()
	io.WriteString(far, "late")
	far.CloseWrite()
	if b, err := io.ReadAll(app); string(b) != "late" || err != nil {
		t.Errorf("application read %q, %v", b, err)
	}
	app.Close()
	if err := within(t, done, "relay"); err != nil {
		t.Error(err)
	}
}

// Whoever leaves before the reply takes the far dial along.
func TestRelayCancelsPendingOpen(t *testing.T) {
	cause := func(t *testing.T, far *fakeStream, want mux.Code) {
		t.Helper()
		<-far.Context().Done()
		if got := mux.CodeOf(context.Cause(far.Context())); got != want {
			t.Errorf("far end sees %v, want %v", got, want)
		}
	}
	t.Run("reset", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		done := opened(ours, st)
		abort(app)
		if err := within(t, done, "relay"); mux.CodeOf(err) != mux.Cancelled {
			t.Errorf("relay returned %v", err)
		}
		cause(t, far, mux.Cancelled)
	})
	t.Run("closed without a byte", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			app, ours := net.Pipe()
			st, far := newFakeStreams(mux.Header{})
			start := time.Now()
			done := opened(ours, st)
			app.Close()
			<-done
			cause(t, far, mux.Cancelled)
			if d := time.Since(start); d != departure {
				t.Errorf("after %v", d)
			}
		})
	})
	t.Run("half-closed and answered in time", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			app, ours := net.Pipe()
			st, far := newFakeStreams(mux.Header{})
			done := opened(ours, st)
			app.Close()
			<-time.After(departure / 2) // fake clock: the dial takes this long
			far.Accept()
			<-time.After(departure)
			if far.Context().Err() != nil {
				t.Error("stream was reset")
			}
			far.CloseWrite()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("closed after some bytes", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			app, ours := net.Pipe()
			st, far := newFakeStreams(mux.Header{})
			done := opened(ours, st)
			io.WriteString(app, "fire and forget")
			app.Close()
			<-time.After(3 * departure)
			if far.Context().Err() != nil {
				t.Error("stream was reset")
			}
			far.Accept()
			if b, err := io.ReadAll(far); string(b) != "fire and forget" || err != nil {
				t.Errorf("far end read %q, %v", b, err)
			}
			far.CloseWrite()
			<-done
		})
	})
	t.Run("no reply in time", func(t *testing.T) {
		app, ours := tcpPair(t)
		st, far := newFakeStreams(mux.Header{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		r := &relay{conn: ours, stream: st, replied: make(chan struct{})}
		if err := r.run(ctx); mux.CodeOf(err) != mux.TimedOut {
			t.Errorf("relay returned %v", err)
		}
		cause(t, far, mux.Cancelled)
		if _, err := io.ReadAll(app); !isReset(err) {
			t.Errorf("application sees %v, want a reset", err)
		}
	})
}

func BenchmarkRelay(b *testing.B) {
	app, ours := tcpPair(b)
	app.SetDeadline(time.Time{})
	st, far := newFakeStreams(mux.Header{})
	_, done := startRelay(ours, st)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(io.Discard, far) })
	p := make([]byte, smallChunk)
	b.SetBytes(smallChunk)
	b.ReportAllocs()
	for b.Loop() {
		app.Write(p)
	}
	app.Close()
	far.CloseWrite()
	wg.Wait()
	<-done
}

// Relays that are stuck hold small chunks once there are many of them.
func TestChunks(t *testing.T) {
	var p chunkPool
	p.small.New, p.large.New = chunks.small.New, chunks.large.New
	var held []*[]byte
	for range largeMax + 3 {
		held = append(held, p.take())
	}
	for i, c := range held {
		if want := largeChunk; i < largeMax && len(*c) != want || i >= largeMax && len(*c) != smallChunk {
			t.Errorf("chunk %d of %d bytes", i, len(*c))
		}
		p.give(c)
	}
	if n := p.largeTaken.Load(); n != 0 {
		t.Errorf("%d large chunks taken after all were given back", n)
	}
	if c := p.take(); len(*c) != largeChunk {
		t.Errorf("chunk of %d bytes after all were given back", len(*c))
	}
}
