package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/mux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// half is one direction of a fake stream: a bounded buffer.
type half struct {
	mu    sync.Mutex
	moved sync.Cond
	buf   []byte
	most  int
	eof   bool
	err   error
}

func newHalf() *half {
	h := &half{most: 256 << 10}
	h.moved.L = &h.mu
	return h
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n < len(p) {
		for h.err == nil && len(h.buf) >= h.most {
			h.moved.Wait()
		}
		if h.err != nil {
			return n, h.err
		}
		k := min(len(p)-n, h.most-len(h.buf))
		h.buf = append(h.buf, p[n:n+k]...)
		n += k
		h.moved.Broadcast()
	}
	return n, nil
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.err == nil && len(h.buf) == 0 && !h.eof {
		h.moved.Wait()
	}
	switch {
	case h.err != nil:
		return 0, h.err
	case len(h.buf) == 0:
		h.buf = nil
		return 0, io.EOF
	}
	n := copy(p, h.buf)
	h.buf = h.buf[n:]
	h.moved.Broadcast()
	return n, nil
}

func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eof = true
	if err != nil && h.err == nil {
		h.err = err
	}
	h.moved.Broadcast()
}

func (h *half) clean() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.eof
}

// fakeStream is one end of a stream in memory.
type fakeStream struct {
	id      uint64
	header  mux.Header
	in, out *half
	shared  *fakeShared
	ctx     context.Context
	end     context.CancelCauseFunc
	peer    *fakeStream
}

type fakeShared struct {
	once    sync.Once
	replied chan struct{}
	refusal *mux.Error
}

// newFakeStreams is a stream's opener's and acceptor's end.
func newFakeStreams(h mux.Header) (opener, acceptor *fakeStream) {
	a, b := newHalf(), newHalf()
	shared := &fakeShared{replied: make(chan struct{})}
	opener = &fakeStream{id: 1, header: h, in: a, out: b, shared: shared}
	acceptor = &fakeStream{id: 1, header: h, in: b, out: a, shared: shared}
	opener.peer, acceptor.peer = acceptor, opener
	for _, s := range []*fakeStream{opener, acceptor} {
		s.ctx, s.end = context.WithCancelCause(context.Background())
	}
	return opener, acceptor
}

func (s *fakeStream) ID() uint64                  { return s.id }
func (s *fakeStream) Header() mux.Header          { return s.header }
func (s *fakeStream) Context() context.Context    { return s.ctx }
func (s *fakeStream) Write(p []byte) (int, error) { return s.out.write(p) }
func (s *fakeStream) Read(p []byte) (int, error)  { return s.in.read(p) }
func (s *fakeStream) CloseWrite() error           { s.out.end(nil); return nil }

func (s *fakeStream) Deliver(w mux.TryWriter, done func(int64, error)) {
	go func() {
		n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{s}, make([]byte, 512))
		done(n, err)
	}()
}

func (s *fakeStream) settle(e *mux.Error) {
	s.shared.once.Do(func() { s.shared.refusal = e; close(s.shared.replied) })
}

func (s *fakeStream) Accept() error { s.settle(nil); return nil }

func (s *fakeStream) Refuse(code mux.Code, reason string) error {
	s.settle(&mux.Error{Code: code, Reason: reason})
	s.Reset(code, reason)
	return nil
}

func (s *fakeStream) Reply(ctx context.Context) error {
	select {
	case <-s.shared.replied:
	default:
		select {
		case <-s.shared.replied:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.shared.refusal != nil {
		return s.shared.refusal
	}
	return nil
}

func (s *fakeStream) Reset(code mux.Code, reason string) {
	err := &mux.Error{Code: code, Reason: reason}
	for _, h := range []*half{s.in, s.out} {
		h.end(err)
	}
	s.end(err)
	s.peer.end(err)
}

func (s *fakeStream) Close() error {
	if s.in.clean() && s.out.clean() {
		s.end(net.ErrClosed)
		return nil
	}
	s.Reset(mux.Cancelled, "closed")
	return nil
}

// tcpPair is an application's end and ours of one TCP connection on loopback.
func tcpPair(t testing.TB) (app, ours *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	// Nothing in these tests may wait for ever.
	a.SetDeadline(time.Now().Add(20 * time.Second))
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// within returns what arrives on c, or fails the test after a long while.
func within[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("timed out: %s", what)
		panic("unreachable")
	}
}

// journal is a log that a test can wait on.
type journal struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan struct{}
}

func newJournal(t testing.TB) (*slog.Logger, *journal) {
	j := &journal{lines: make(chan struct{}, 1)}
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug})), j
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	select {
	case j.lines <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// find waits for a line that holds all of words and returns it.
func (j *journal) find(t testing.TB, words ...string) string {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
	lines:
		for line := range strings.Lines(j.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return line
		}
		select {
		case <-j.lines:
		case <-timeout:
			t.Fatalf("no log line with %q in:\n%s", words, j)
		}
	}
}
