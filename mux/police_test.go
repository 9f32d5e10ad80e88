package mux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// syncbuf is a bytes.Buffer for several goroutines.
type syncbuf struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncbuf) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncbuf) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// frames builds what a raw smux peer would send.
type frames []byte

func (f frames) add(command byte, id uint32, payload []byte) frames {
	f = append(f, 2, command)
	f = binary.LittleEndian.AppendUint16(f, uint16(len(payload)))
	f = binary.LittleEndian.AppendUint32(f, id)
	return append(f, payload...)
}

func (f frames) syn(ids ...uint32) frames {
	for _, id := range ids {
		f = f.add(frameSYN, id, nil)
	}
	return f
}

// A peer that smux would put up with ends its own session, nothing else.
func TestPolice(t *testing.T) {
	control := frames(nil).syn(controlID)
	header := Header{Kind: KindDial}.append(nil)
	overrun := control.syn(5).add(framePSH, 5, header)
	for range initialWindow/60_000 + 1 {
		overrun = overrun.add(framePSH, 5, make([]byte, 60_000))
	}
	longHeader := Header{KindDial, strings.Repeat("x", maxTarget)}.append(nil)
	longHeader[1], longHeader[2] = 0xff, 0xff
	tests := []struct {
		name, want string
		frames     frames
		ok         bool // a fault of one stream only
	}{
		{name: "wrong end's identifier", frames: control.syn(6), want: "wrong end"},
		{name: "stream zero", frames: control.syn(0), want: "wrong end"},
		{name: "opened twice", frames: control.syn(5, 5), want: "opened twice"},
		{name: "control stream opened twice", frames: control.syn(controlID), want: "opened twice"},
		{name: "opened twice, with a header", frames: control.syn(5).add(framePSH, 5, header).syn(5), want: "opened twice"},
		{name: "control stream closed", frames: control.add(frameFIN, controlID, nil), want: "control stream closed"},
		{name: "payload of SYN", frames: control.add(frameSYN, 5, []byte{1}), want: "command 0 with 1 bytes"},
		{name: "payload of FIN", frames: control.add(frameFIN, 5, []byte{1}), want: "command 1 with 1 bytes"},
		{name: "unknown command", frames: control.add(5, 0, nil), want: "command 5"},
		{name: "version", frames: frames{1, 0, 0, 0, 3, 0, 0, 0}, want: "version 1"},
		{name: "window overrun", frames: overrun, want: "granted"},
		{name: "no control stream", frames: frames(nil).syn(5), want: "first stream"},
		{name: "silence", want: "no control stream within"},
		{name: "record too long", frames: control.add(framePSH, controlID, []byte{1, 0xff, 0xff}), want: "record of"},
		{name: "record too short", frames: control.add(framePSH, controlID, []byte{1, 0, 1, 0}), want: "record 1 of"},
		{name: "header too long", frames: control.syn(5).add(framePSH, 5, longHeader), ok: true, want: "target of"},
		{name: "unknown kind", frames: control.syn(5).add(framePSH, 5, []byte{9, 0, 0}), ok: true, want: "kind 9"},
		{name: "no header", frames: control.syn(5), ok: true, want: "no header"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var log syncbuf
			l := newScript(test.frames)
			l.hold = true
			s, err := Server(l, Config{
				MaxStreams:  8,
				OpenTimeout: 50 * time.Millisecond,
				Logger:      slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			})
			if err != nil {
				t.Fatal(err)
			}
			if !test.ok {
				<-s.Done()
				if err := s.Err(); !errors.Is(err, errProtocol) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("session ended with %v, want %q", err, test.want)
				}
				s.Close("", 0)
				if reason := l.told(); reason != s.Err().Error() {
					t.Errorf("the peer was told %q, want %q", reason, s.Err())
				}
				return
			}
			deadline := time.Now().Add(10 * time.Second)
			for !strings.Contains(log.String(), test.want) {
				if time.Now().After(deadline) {
					t.Fatalf("stream not reset, or not for %q", test.want)
				}
				select {
				case <-s.Done():
					t.Fatalf("session ended: %v", s.Err())
				case <-time.After(time.Millisecond):
				}
			}
			if n := s.NumStreams(); n > 0 {
				t.Errorf("%d streams left", n)
			}
			s.Close("", 0)
		})
	}
}
