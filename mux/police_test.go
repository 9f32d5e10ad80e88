package mux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

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
	flood := control
	for id := uint32(5); id < 5+2*100; id += 2 {
		flood = flood.syn(id)
	}
	overrun := control.syn(5)
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
		{name: "flood of streams", frames: flood, want: "streams opened"},
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
			var log bytes.Buffer
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
				return
			}
			deadline := time.Now().Add(10 * time.Second)
			for {
				s.mu.Lock()
				st := s.streams[5]
				reset := st != nil && st.reset != nil
				s.mu.Unlock()
				if reset {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("stream not reset")
				}
				select {
				case <-s.Done():
					t.Fatalf("session ended: %v", s.Err())
				case <-time.After(time.Millisecond):
				}
			}
			s.Close("", 0)
			if !strings.Contains(log.String(), test.want) {
				t.Errorf("log %q, want %q", log.String(), test.want)
			}
		})
	}
}
