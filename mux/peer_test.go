package mux

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// frame is one frame of smux.
type frame struct {
	command byte
	id      uint32
	payload string
}

func (f frame) String() string {
	return fmt.Sprintf("{command %d, stream %d, %q}", f.command, f.id, f.payload)
}

// peer is the other end of a session, played by the test frame by frame.
type peer struct {
	*script
	t      testing.TB
	s      *Session
	hear   func([]byte)
	full   atomic.Bool
	unsent atomic.Bool // something was appended after the last Send
	reason string      // of the link's end

	mu      sync.Mutex
	written []byte // the beginning of a frame
	frames  chan frame
}

func newPeer(t testing.TB, session func(Link, Config) (*Session, error), cfg Config) *peer {
	t.Helper()
	p := &peer{script: newScript(nil), t: t, frames: make(chan frame, 1000)}
	var err error
	if p.s, err = session(p, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.s.Close("test over", 0) })
	if p.s.client {
		p.want(frame{frameSYN, controlID, ""})
	} else {
		p.say(frame{frameSYN, controlID, ""})
	}
	p.want(onControl(record{kind: recordMaxStreams, id: uint32(p.s.cfg.MaxStreams)}))
	return p
}

// open opens a stream from the session's end, and serve has the session accept
// one.
func (p *peer) open(id uint32) *Stream {
	p.t.Helper()
	h := Header{KindDial, "target:1"}
	st, err := p.s.Open(p.t.Context(), h)
	if err != nil {
		p.t.Fatal(err)
	}
	p.want(frame{frameSYN, id, ""}, frame{framePSH, id, string(h.append(nil))})
	return st
}

func (p *peer) serve(id uint32) *Stream {
	p.t.Helper()
	h := Header{KindDial, "target:1"}
	p.say(frame{frameSYN, id, ""}, frame{framePSH, id, string(h.append(nil))})
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	st, err := p.s.Accept(ctx)
	if err != nil || st.Header() != h || st.ID() != uint64(id) {
		p.t.Fatalf("accepted %+v, %v", st, err)
	}
	return st
}

func (p *peer) say(v ...frame) {
	p.t.Helper()
	for _, f := range v {
		p.hear(frames(nil).add(f.command, f.id, []byte(f.payload)))
		p.Send() // as the link does
	}
}

// onControl is a record as a frame.
func onControl(r record) frame { return frame{framePSH, controlID, string(r.append(nil))} }

// want expects the session's next frames to be v.
func (p *peer) want(v ...frame) {
	p.t.Helper()
	for _, want := range v {
		if got := p.next(); got != want {
			p.t.Fatalf("frame %v, want %v", got, want)
		}
	}
}

// drain forgets what the session has written, and what it is about to.
func (p *peer) drain() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	p.s.drainQueue(ctx)
	for len(p.frames) > 0 {
		<-p.frames
	}
}

// none expects that the session has written nothing more.
func (p *peer) none() {
	p.t.Helper()
	select {
	case f := <-p.frames:
		p.t.Errorf("frame %v, want none", f)
	default:
	}
}

// queued waits until n tickets wait for their turn.
func (p *peer) queued(n int) {
	p.t.Helper()
	started := time.Now()
	for waiting := -1; waiting != n; runtime.Gosched() {
		if time.Since(started) > 20*time.Second {
			p.t.Fatalf("%d wait for their turn, want %d", waiting, n)
		}
		waiting = 0
		p.s.mu.Lock()
		for _, row := range p.s.turns.waiting {
			for _, k := range row {
				if k.waiting {
					waiting++
				}
			}
		}
		p.s.mu.Unlock()
	}
}

// makeRoom ends that the link is full.
func (p *peer) makeRoom() {
	p.full.Store(false)
	p.s.room()
}

// next is the session's next frame.
func (p *peer) next() frame {
	p.t.Helper()
	select {
	case f := <-p.frames:
		return f
	case <-time.After(20 * time.Second):
		p.t.Fatal("no frame")
		panic("unreachable")
	}
}

// left waits until the session has n streams.
func (p *peer) left(n int) {
	p.t.Helper()
	for started := time.Now(); p.s.NumStreams() != n; runtime.Gosched() {
		if time.Since(started) > 20*time.Second {
			p.t.Fatalf("%d streams left, want %d", p.s.NumStreams(), n)
		}
	}
}

// settled waits until the session has written what follows from what the peer has said,
// and expects that to be nothing more.
func (p *peer) settled() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	p.s.drainQueue(ctx)
	if ctx.Err() != nil {
		p.t.Fatal("the session does not write what is queued")
	}
	p.none()
}

func (p *peer) Handle(receive func([]byte), _ func()) { p.hear = receive }

func (p *peer) Append(v [][]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unsent.Store(true)
	for _, b := range v {
		p.written = append(p.written, b...)
	}
	for len(p.written) >= frameHeader {
		end := frameHeader + int(binary.LittleEndian.Uint16(p.written[2:]))
		if len(p.written) < end {
			break
		}
		f := frame{p.written[1], binary.LittleEndian.Uint32(p.written[4:]), string(p.written[frameHeader:end])}
		p.written = p.written[end:]
		p.frames <- f
	}
	return nil
}

func (p *peer) Send() { p.unsent.Store(false) }

// sent waits until nothing that was appended waits for a Send.
func (p *peer) sent() {
	p.t.Helper()
	for started := time.Now(); p.unsent.Load(); runtime.Gosched() {
		if time.Since(started) > 20*time.Second {
			p.t.Fatal("something was appended that nobody sends")
		}
	}
}

func (p *peer) Full() bool { return p.full.Load() }

func (p *peer) Close(reason string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reason = reason
	return p.script.Close(reason)
}

// flushed stands for a Flush among the frames.
var flushed = frame{payload: "flushed"}

func (p *peer) Flush(<-chan struct{}) error {
	p.frames <- flushed
	return nil
}
