package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// narrow is a link with room for one Append at a time.
type narrow struct {
	*script
	session *Session
	rate    float64

	mu     sync.Mutex
	full   bool
	writes []string // stream and bytes of payload of each Append
	bytes  map[uint32][]byte
}

func (n *narrow) Full() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.full
}

func (n *narrow) Bandwidth() float64 { return n.rate }

func (n *narrow) Append(v [][]byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	size := 0
	var id uint32
	for ; len(v) > 0; v = v[2:] {
		header, payload := v[0], v[1]
		if header[0] != smuxVersion || header[1] != framePSH || int(binary.LittleEndian.Uint16(header[2:])) != len(payload) {
			return fmt.Errorf("frame %x with %d bytes", header, len(payload))
		}
		id = binary.LittleEndian.Uint32(header[4:])
		n.bytes[id] = append(n.bytes[id], payload...)
		size += len(payload)
	}
	n.writes = append(n.writes, fmt.Sprint(id, ":", size))
	n.full = true
	return nil
}

// room makes room for one Append and returns what came until nothing moves.
func (n *narrow) room() []string {
	n.mu.Lock()
	n.full = false
	n.writes = nil
	n.mu.Unlock()
	n.session.room()
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.writes
}

// bare is a session without smux.
func bare(l Link, cfg Config) *Session {
	s := &Session{cfg: cfg.withDefaults(), link: l, streams: map[uint32]*Stream{}}
	s.log = s.cfg.Logger
	s.queue.ready.L = &s.mu
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// turned runs f with three streams, numbers 5, 7 and 9, of a session on a full
// link. Nothing of smux is in it, whose pool of channels is not for bubbles.
func turned(t *testing.T, f func(n *narrow, s *Session, streams []*Stream)) {
	bubble.Test(t, func(t *testing.T) {
		n := &narrow{script: newScript(nil), full: true, bytes: map[uint32][]byte{}}
		s := bare(n, Config{})
		defer s.cancel(nil)
		n.session = s
		var streams []*Stream
		for _, id := range []uint32{5, 7, 9} {
			st := newStream(s, id, true)
			s.register(st)
			streams = append(streams, st)
		}
		f(n, s, streams)
	})
}

// Streams write one frame each, in the order in which they asked.
func TestTurns(t *testing.T) {
	turned(t, func(n *narrow, _ *Session, streams []*Stream) {
		data := make([]byte, 130<<10)
		for i := range data {
			data[i] = byte(i >> 8)
		}
		var writers sync.WaitGroup
		for _, st := range []*Stream{streams[1], streams[0], streams[2]} {
			writers.Go(func() {
				if n, err := st.Write(data); n != len(data) || err != nil {
					t.Errorf("stream %d: %d bytes written, %v", st.id, n, err)
				}
			})
			synctest.Wait() // it waits now
		}
		for _, want := range []string{
			"7:61440", "5:61440", "9:61440", "7:61440", "5:61440", "9:61440", "7:10240", "5:10240", "9:10240",
		} {
			if got := n.room(); !slices.Equal(got, []string{want}) {
				t.Errorf("writes %v, want %v", got, want)
			}
		}
		writers.Wait()
		for _, st := range streams {
			if !slices.Equal(n.bytes[st.id], data) {
				t.Errorf("stream %d: %d bytes on the link", st.id, len(n.bytes[st.id]))
			}
		}
	})
}

// Who comes when there is room already, but others were there before, waits too.
func TestTurnIsNotJumped(t *testing.T) {
	turned(t, func(n *narrow, s *Session, streams []*Stream) {
		var writers sync.WaitGroup
		writers.Go(func() { streams[0].Write([]byte("first")) })
		synctest.Wait()
		n.mu.Lock()
		n.full = false
		n.mu.Unlock()
		writers.Go(func() { streams[1].Write([]byte("second one")) })
		synctest.Wait()
		if len(n.writes) > 0 {
			t.Errorf("writes %v before the turn of 5", n.writes)
		}
		if got := slices.Concat(n.room(), n.room()); !slices.Equal(got, []string{"5:5", "7:10"}) {
			t.Errorf("writes %v, want those of 5 first", got)
		}
		writers.Wait()
	})
}

// Little writes go first, but not for ever.
func TestLittleWritesGoFirst(t *testing.T) {
	turned(t, func(n *narrow, s *Session, streams []*Stream) {
		var writers sync.WaitGroup
		write := func(st *Stream, size int) {
			writers.Go(func() { st.Write(make([]byte, size)) })
			synctest.Wait()
		}
		write(streams[0], 70<<10)
		write(streams[1], littleWrite+1)
		write(streams[2], littleWrite)
		for _, want := range []string{"9:2048", "5:61440", "7:2049", "5:10240"} {
			if got := n.room(); !slices.Equal(got, []string{want}) {
				t.Errorf("writes %v, want %v", got, want)
			}
		}
		writers.Wait()

		write(streams[0], 10<<10)
		const more = 5
		for id := range uint32(maxFrame/littleWrite + more) {
			st := newStream(s, 101+2*id, true)
			s.register(st)
			write(st, 1)
		}
		first := 0
		for got := n.room(); !slices.Equal(got, []string{"5:10240"}); got = n.room() {
			if first++; len(got) != 1 {
				t.Fatalf("writes %v", got)
			}
		}
		if first != maxFrame/littleWrite {
			t.Errorf("%d little writes before another, want %d", first, maxFrame/littleWrite)
		}
		for range more {
			n.room()
		}
		writers.Wait()
	})
}

// A stream that nobody else waits beside writes several frames at once.
func TestTurnAlone(t *testing.T) {
	turned(t, func(n *narrow, _ *Session, streams []*Stream) {
		var writer sync.WaitGroup
		writer.Go(func() { streams[0].Write(make([]byte, 250<<10)) })
		synctest.Wait()
		if got := n.room(); !slices.Equal(got, []string{fmt.Sprint("5:", maxTurn)}) {
			t.Errorf("writes %v, want one of %d bytes", got, maxTurn)
		}
		n.room()
		writer.Wait()
	})
}

// On a path that is not fast a stream writes what takes about a millisecond at a
// time, although nobody else waits.
func TestTurnOnSlowPath(t *testing.T) {
	for rate, want := range map[float64][]string{
		1e6:  {"5:8192", "5:8192"},
		20e6: {"5:20000", "5:20000"},
		1e9:  {"5:245760", "5:4240"},
	} {
		turned(t, func(n *narrow, _ *Session, streams []*Stream) {
			n.rate = rate
			var writer sync.WaitGroup
			writer.Go(func() { streams[0].Write(make([]byte, 250_000)) })
			synctest.Wait()
			if got := slices.Concat(n.room(), n.room()); !slices.Equal(got, want) {
				t.Errorf("at %.0f bytes/s it writes %v, want %v", rate, got, want)
			}
			streams[0].Reset(Cancelled, "enough")
			writer.Wait()
		})
	}
}

// A stream that gives up, before its turn or in it, lets the others write.
func TestTurnGivenUp(t *testing.T) {
	for name, giveUp := range map[string]func(n *narrow, s *Session, st *Stream){
		"reset": func(_ *narrow, _ *Session, st *Stream) { st.Reset(Cancelled, "test") },
		"peer's reset": func(_ *narrow, s *Session, st *Stream) {
			s.handle(record{kind: recordReset, id: st.id, code: ResetByPeer})
		},
		"deadline": func(_ *narrow, _ *Session, st *Stream) {
			st.SetWriteDeadline(time.Now().Add(time.Second))
			time.Sleep(2 * time.Second) // of the bubble's
		},
		"reset in its turn": func(n *narrow, s *Session, st *Stream) {
			s.mu.Lock()
			defer s.mu.Unlock()
			n.full = false
			s.nextTurn()
			n.full = true
			if s.turns.writing != &st.write {
				t.Error("it is not the turn of who waits for longest")
			}
			s.resetLocked(st, &Error{Code: Cancelled})
		},
	} {
		t.Run(name, func(t *testing.T) {
			turned(t, func(n *narrow, s *Session, streams []*Stream) {
				var writers sync.WaitGroup
				writers.Go(func() {
					var e *Error
					if k, err := streams[0].Write(make([]byte, 100)); k != 0 || !errors.As(err, &e) {
						t.Errorf("%d bytes written, %v; want an *Error", k, err)
					}
				})
				synctest.Wait()
				writers.Go(func() {
					if _, err := streams[1].Write(make([]byte, 50)); err != nil {
						t.Errorf("write: %v", err)
					}
				})
				synctest.Wait()
				giveUp(n, s, streams[0])
				synctest.Wait()
				if got := n.room(); !slices.Equal(got, []string{"7:50"}) {
					t.Errorf("writes %v, want 7:50", got)
				}
				writers.Wait()
			})
		})
	}
}

// sends counts the messages that it would send: one for all that was appended since the last Send.
type sends struct {
	*script

	mu       sync.Mutex
	appended int
	messages int
}

func (l *sends) Append([][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appended++
	return nil
}

func (l *sends) Send() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.appended > 0 {
		l.messages++
	}
	l.appended = 0
}

// What many streams write at the same time leaves together, and what one writes
// leaves at once.
func TestLittleWritesLeaveTogether(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // they all wait for the one that runs
	bubble.Test(t, func(t *testing.T) {
		const n, most = 64, 4
		l := &sends{script: newScript(nil)}
		s := bare(l, Config{})
		defer s.cancel(nil)
		var writers sync.WaitGroup
		for i := range uint32(n) {
			st := newStream(s, 2*i+1, true)
			s.register(st)
			writers.Go(func() { st.Write([]byte("echo")) })
		}
		writers.Wait()
		if l.messages > most || l.appended > 0 {
			t.Errorf("%d writes left in %d messages, want %d at most; %d have not left", n, l.messages, most, l.appended)
		}
	})
}

func TestCrowded(t *testing.T) {
	var turns turns
	const one, other = 3, 5
	at := time.Now()
	for i, write := range []struct {
		id    uint32
		after time.Duration
		want  bool
	}{
		{one, 0, false},
		{one, 1, false},
		{other, crowdTime - 1, true},
		{other, 1, false},
		{one, crowdTime, false},
		{other, 0, true},
	} {
		at = at.Add(write.after)
		if got := turns.crowded(write.id, at); got != write.want {
			t.Errorf("write %d: crowded %t, want %t", i, got, write.want)
		}
	}
}
