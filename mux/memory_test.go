package mux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/test/bubble"
)

func TestDefaults(t *testing.T) {
	got := Config{}.withDefaults()
	if got.MaxStreams != 16384 || got.OpenTimeout != 10*time.Second || got.MaxWindow != 16<<20 || got.Memory != 64<<20 || got.Logger == nil {
		t.Errorf("defaults %+v", got)
	}
	if got := (Config{MaxWindow: 1}).withDefaults().MaxWindow; got != 256<<10 {
		t.Errorf("smallest window %d", got)
	}
}

// distant is a link with a round trip.
type distant struct {
	*script
	rtt time.Duration
}

func (d *distant) RoundTrip() time.Duration { return d.rtt }

// A window grows when its reader drains half of it within two round trips, and
// while there is memory to spare.
func TestWindowGrows(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name                   string
		rtt, took              time.Duration
		window, most, held     int
		budget, reset, waiting int
		want                   int // the window, 0: nothing granted
	}{
		{name: "fast", rtt: 10 * ms, took: 19 * ms, window: 256 << 10, want: 512 << 10},
		{name: "slow", rtt: 10 * ms, took: 20 * ms, window: 256 << 10, want: 256 << 10},
		{name: "short path", took: ms - 1, window: 256 << 10, want: 512 << 10},
		{name: "short path, slow", took: ms, window: 256 << 10, want: 256 << 10},
		{name: "short path, large", took: ms - 1, window: 2 << 20, want: 2 << 20},
		{name: "large", rtt: ms, took: ms, window: 2 << 20, want: 4 << 20},
		{name: "largest", rtt: ms, window: 16 << 20, want: 16 << 20},
		{name: "nearly largest", rtt: ms, window: 256 << 10, most: 300 << 10, want: 300 << 10},
		{name: "little memory", rtt: ms, window: 256 << 10, held: 32 << 20, want: 256 << 10},
		{name: "enough memory", rtt: ms, window: 256 << 10, held: 32<<20 - 1, want: 512 << 10},
		{name: "little budget", rtt: ms, window: 256 << 10, budget: 1000, want: 256 << 10},
		{name: "half unread", rtt: ms, window: 256 << 10, waiting: 1, want: 0},
		{name: "reset", rtt: ms, window: 256 << 10, reset: 1, want: 0},
	}
	for _, test := range tests {
		bubble.Test(t, func(t *testing.T) {
			b := NewBudget(2000)
			s := bare(&distant{newScript(nil), test.rtt}, Config{MaxWindow: test.most, Budget: b})
			defer s.cancel(nil)
			st := newStream(s, 5, false)
			s.register(st)
			st.window, st.granted = test.window, uint64(test.window)
			st.received = st.granted
			if test.reset > 0 {
				st.Reset(Cancelled, "test")
			}
			s.held.Store(int64(test.held))
			b.used.Store(int64(test.budget))
			time.Sleep(test.took)
			n := test.window/2 - test.waiting
			s.mu.Lock()
			s.consumed(st, n)
			s.mu.Unlock()
			granted := len(s.queue.windows) == 1 && st.granted == uint64(n+test.want)
			if test.want == 0 {
				granted = len(s.queue.windows) == 0 && st.granted == uint64(test.window)
			}
			if !granted {
				t.Errorf("%s: window %d, granted %d in %d records, want a window of %d", test.name, st.window, st.granted, len(s.queue.windows), test.want)
			}
		})
	}
}

// A window record never takes back what an earlier one granted.
func TestWindowRecord(t *testing.T) {
	s := bare(newScript(nil), Config{})
	defer s.cancel(nil)
	st := newStream(s, 5, true)
	s.register(st)
	for _, bytes := range []uint64{300_000, 290_000} {
		s.handle(record{kind: recordWindow, id: 5, bytes: bytes})
		if st.credit != 300_000 {
			t.Errorf("credit %d after a record of %d, want 300000", st.credit, bytes)
		}
	}
}

// Memory is taken back from the stream that is stuck for longest, small ones
// last.
func TestLongestBlocked(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := bare(newScript(nil), Config{})
		defer s.cancel(nil)
		arrive := func(id uint32, n int) {
			t.Helper()
			time.Sleep(time.Second)
			if s.streams[id] == nil {
				s.register(newStream(s, id, false))
			}
			receive(t, s, id, n)
		}
		s.register(newStream(s, 19, false)) // has nothing
		arrive(17, 100_000)                 // stuck first, but ended
		ended := s.streams[17]
		ended.Reset(Cancelled, "test")
		if ended.charge != 0 || s.streams[17] != nil {
			t.Error("a stream that was reset holds something")
		}
		arrive(5, 1000) // small
		arrive(7, 20_000)
		arrive(9, 20_000)
		arrive(11, 20_000)
		arrive(7, 20_000)
		time.Sleep(time.Second)
		s.streams[9].read(make([]byte, 1000)) // moves
		held := s.held.Load()
		for _, want := range []uint32{7, 11, 9, 5} {
			st := s.streams[want]
			held -= st.charge
			if !s.resetLongestBlocked() || st.reset == nil || st.reset.Code != OverBudget {
				t.Fatalf("stream %d was not reset", want)
			}
			if got := s.held.Load(); got != held || st.charge != 0 {
				t.Errorf("%d bytes held after the reset of %d, want %d", got, want, held)
			}
		}
		if s.resetLongestBlocked() {
			t.Error("one more was reset")
		}
		if s.streams[19] == nil {
			t.Error("a stream was reset that holds nothing")
		}
		receive(t, s, 7, 100)
		if got := s.held.Load(); got != held {
			t.Errorf("%d bytes held with those of a reset stream, want %d", got, held)
		}
	})
}

// receive has n bytes arrive for a stream.
func receive(t *testing.T, s *Session, id uint32, n int) {
	t.Helper()
	s.demux.to = nil
	if err := s.arriving(id, n); err != nil {
		t.Fatal(err)
	}
	if st := s.demux.to; st != nil {
		s.deliver(st, make([]byte, n))
	}
}

// What is charged is the memory that the bytes take, many small frames share it,
// and as many streams are reset as it takes.
func TestMemory(t *testing.T) {
	s := bare(newScript(nil), Config{Memory: 95_000})
	defer s.cancel(nil)
	for id := uint32(5); id < 25; id += 2 {
		s.register(newStream(s, id, false))
		for range 1000 {
			receive(t, s, id, 1)
		}
		receive(t, s, id, 6000)
	}
	if held, want := s.held.Load(), int64(10*(512+1024+8192)); held > 95_000 || held < 70_000 || held > want {
		t.Errorf("%d bytes held, want %d", held, want)
	}
	s.register(newStream(s, 25, false))
	receive(t, s, 25, 16_000)
	resets := 11 - len(s.streams)
	if held := s.held.Load(); held > 95_000 || resets != 2 {
		t.Errorf("%d bytes held after %d resets, want 2 resets", held, resets)
	}
}

// The budget is relieved by the session that holds most.
func TestBudgetLargest(t *testing.T) {
	b := NewBudget(50_000 + 4*streamCost)
	var sessions []*Session
	for _, n := range []int{10_000, 30_000, 9000} {
		s := bare(newScript(nil), Config{Budget: b})
		defer s.cancel(nil)
		b.join(s)
		sessions = append(sessions, s)
		s.register(newStream(s, 5, false))
		receive(t, s, 5, n)
	}
	s := sessions[0]
	s.register(newStream(s, 7, false))
	receive(t, s, 7, 2000)
	for i, s := range sessions {
		if reset := s.streams[5] == nil; reset != (i == 1) {
			t.Errorf("session %d: reset %v", i, reset)
		}
	}
	if used, want := b.used.Load(), int64(16<<10+16<<10+2048+3*streamCost); used != want {
		t.Errorf("%d bytes used, want %d", used, want)
	}
}

// A part of a budget has a limit of its own, which is relieved by the part's sessions
// alone, and what they hold counts for the whole.
func TestBudgetPart(t *testing.T) {
	b := NewBudget(200_000 + 2*streamCost)
	part := b.Part()
	var sessions []*Session
	for _, budget := range []*Budget{b, part} {
		s := bare(newScript(nil), Config{Budget: budget})
		defer s.cancel(nil)
		budget.join(s)
		defer budget.leave(s)
		s.register(newStream(s, 5, false))
		sessions = append(sessions, s)
	}
	receive(t, sessions[0], 5, 30_000)
	receive(t, sessions[1], 5, 20_000)
	if used, want := b.used.Load()-part.used.Load(), sessions[0].charged.Load(); used != want || part.used.Load() != sessions[1].charged.Load() {
		t.Errorf("the whole has %d bytes more than the part, want %d", used, want)
	}
	if sessions[1].streams[5] == nil {
		t.Error("reset without a limit")
	}
	part.SetLimit(10_000 + streamCost)
	if part.Spare() || !b.Spare() {
		t.Error("the part has memory to spare, or the whole has none")
	}
	receive(t, sessions[1], 5, 1)
	if sessions[1].streams[5] != nil || sessions[0].streams[5] == nil {
		t.Error("not the part's stream was reset, and that alone")
	}
}

// Who takes most gives memory back: that is an identity with many sessions, none of them
// large, rather than another one with a single session that is larger than each of those.
func TestBudgetLargestPart(t *testing.T) {
	b := NewBudget(400_000)
	holding := func(part *Budget, n int) *Session {
		s := bare(newScript(nil), Config{Budget: part})
		t.Cleanup(func() { s.cancel(nil) })
		part.join(s)
		s.register(newStream(s, 5, false))
		receive(t, s, 5, n)
		return s
	}
	single := holding(b.Part(), 60_000)
	many := b.Part()
	var sessions []*Session
	for range 8 {
		sessions = append(sessions, holding(many, 30_000))
	}
	if single.streams[5] == nil {
		t.Error("the identity with one session lost its stream")
	}
	left := 0
	for _, s := range sessions {
		left += len(s.streams)
	}
	if left >= 8 || left < 5 || b.used.Load() > 400_000 {
		t.Errorf("%d of 8 streams of the other identity left, %d bytes", left, b.used.Load())
	}
	for _, s := range sessions {
		many.leave(s)
	}
	if len(b.parts) != 1 {
		t.Errorf("%d parts with sessions, want 1", len(b.parts))
	}
}

// A stream counts before it has received anything. Who has most of the memory gets no more
// streams, and gives some back for those of others, the idle ones first.
func TestBudgetStreams(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := NewBudget(5 * streamCost)
		greedy, other := b.Part(), b.Part()
		session := func(part *Budget) *Session {
			s := bare(newScript(nil), Config{Budget: part})
			t.Cleanup(func() { s.cancel(nil) })
			part.join(s)
			return s
		}
		open := func(s *Session, id uint32) bool {
			time.Sleep(time.Second)
			if !s.cfg.Budget.admit(s) {
				return false
			}
			s.register(newStream(s, id, false))
			return true
		}
		a, b1 := session(greedy), session(other)
		for id := uint32(5); id < 13; id += 2 {
			if !open(a, id) {
				t.Fatalf("stream %d was not admitted", id)
			}
		}
		if !open(b1, 5) || open(a, 13) {
			t.Error("not the fifth stream was admitted, and that alone")
		}
		a.streams[5].sentAt = time.Now() // it is busy
		if !open(b1, 7) || len(a.streams) != 3 || a.streams[7] != nil {
			t.Errorf("streams %v left of the greedy one, want all but 7", slices.Collect(maps.Keys(a.streams)))
		}
		greedy.SetLimit(3 * streamCost)
		a.streams[9].Reset(Cancelled, "test")
		if !open(a, 15) || open(a, 17) {
			t.Error("the limit of an identity does not count its streams")
		}
	})
}

// A stream for which there is no memory is reset at once.
func TestStreamOverBudget(t *testing.T) {
	p := newPeer(t, Server, Config{Budget: NewBudget(2 * streamCost)})
	first := p.serve(5)
	p.serve(7)
	header := string(Header{Kind: KindDial}.append(nil))
	p.say(frame{frameSYN, 9, ""}, frame{framePSH, 9, header + "data"}, frame{framePSH, 9, "more"})
	p.want(reset(9, OverBudget, "memory budget exceeded by streams"))
	// One that is stuck makes room.
	p.say(frame{framePSH, 7, strings.Repeat("x", 600)})
	p.serve(11)
	p.want(reset(7, OverBudget, "memory budget exceeded by unread data"), frame{frameFIN, 7, ""})
	first.Close()
	p.want(reset(5, Cancelled, "closed"), frame{frameFIN, 5, ""})
	p.serve(13)
}

// A limit that bites again and again is logged once a second.
func TestLimitLog(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := bare(newScript(nil), Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer s.cancel(nil)
		for range 4 {
			s.limitReached("max_streams", "value", 7)
			time.Sleep(500 * time.Millisecond)
		}
		if n := strings.Count(log.String(), "limit=max_streams value=7"); n != 2 {
			t.Errorf("%d lines in two seconds, want 2:\n%s", n, log.String())
		}
	})
}

// A writer that waits learns that its direction was closed.
func TestWriteClosed(t *testing.T) {
	p := newPeer(t, Client, Config{})
	st := p.open(5)
	p.full.Store(true)
	var writer sync.WaitGroup
	writer.Go(func() {
		if _, err := st.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write: %v, want %v", err, io.ErrClosedPipe)
		}
	})
	p.queued(1)
	var closer sync.WaitGroup
	closer.Go(func() {
		if err := st.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	})
	writer.Wait()
	p.makeRoom()
	p.want(frame{frameFIN, 5, ""})
	closer.Wait()
}

// What opens and closes streams waits for room in the link as long as it takes,
// and is not left to smux before, which gives up after half a minute.
func TestOpenAndCloseWaitForRoom(t *testing.T) {
	p := newPeer(t, Client, Config{})
	p.full.Store(true)
	opened := make(chan *Stream, 1)
	go func() {
		st, err := p.s.Open(t.Context(), Header{Kind: KindDial})
		if err != nil {
			t.Errorf("Open: %v", err)
		}
		opened <- st
	}()
	p.queued(1)
	p.none()
	p.makeRoom()
	p.want(frame{frameSYN, 5, ""}, frame{framePSH, 5, "\x01\x00\x00"})
	st := <-opened
	p.full.Store(true)
	closed := make(chan error, 1)
	go func() { closed <- st.CloseWrite() }()
	p.queued(1)
	p.none()
	p.makeRoom()
	p.want(frame{frameFIN, 5, ""})
	if err := <-closed; err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

// The codes are those of PROTOCOL.md.
func TestCodes(t *testing.T) {
	for i, code := range []Code{
		OK, Refused, Unreachable, TimedOut, Unresolvable, Denied, Limit, NotFound, Stopping, Internal, ResetByPeer,
		Cancelled, OverBudget, SessionLost, Protocol,
	} {
		if int(code) != i {
			t.Errorf("%v is %d, want %d", code, uint8(code), i)
		}
	}
	for code, want := range map[Code]string{
		OK: "ok", TimedOut: "timed out", Stopping: "stopping", Internal: "internal", Protocol: "protocol", 15: "code 15", 255: "code 255",
	} {
		if got := code.String(); got != want {
			t.Errorf("code %d is %q, want %q", uint8(code), got, want)
		}
	}
	var timeout net.Error
	if err := fmt.Errorf("open: %w", &Error{Code: TimedOut}); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
	if (&Error{Code: Denied}).Timeout() {
		t.Error("denied is a timeout")
	}
}
