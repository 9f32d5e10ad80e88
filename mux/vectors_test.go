package mux

import (
	"bytes"
	"errors"
	"testing"

	"culvert/mux/link/linktest"
)

func vector(t testing.TB, name string) []byte { return linktest.Vector(t, "PROTOCOL.md", name) }

func TestVectors(t *testing.T) {
	header := Header{KindDial, "db.internal:5432"}
	if got := header.append(nil); !bytes.Equal(got, vector(t, "header")) {
		t.Errorf("header %x", got)
	}
	opening := append(vector(t, "header"), 'x')
	if got, rest, err := readHeader(opening); err != nil || got != header || string(rest) != "x" {
		t.Errorf("header %+v, then %q, %v", got, rest, err)
	}
	for i := range len(opening) - 1 {
		if _, rest, err := readHeader(opening[:i]); err != nil || rest != nil {
			t.Errorf("%d of %d bytes of a header: then %q, %v", i, len(opening)-1, rest, err)
		}
	}
	reply := &Error{Refused, "no"}
	if got := appendReply(nil, reply); !bytes.Equal(got, vector(t, "reply")) {
		t.Errorf("reply %x", got)
	}
	if got, err := readReply(bytes.NewReader(vector(t, "reply"))); err != nil || *got != *reply {
		t.Errorf("reply %v, %v", got, err)
	}
	reset := record{kind: recordReset, id: 5, code: ResetByPeer, reason: "rst"}
	if got := reset.append(nil); !bytes.Equal(got, vector(t, "record")) {
		t.Errorf("record %x", got)
	}
	text := vector(t, "record")
	if got, rest, err := readRecord(append(text, 'x')); err != nil || got != reset || string(rest) != "x" {
		t.Errorf("record %+v, then %q, %v", got, rest, err)
	}
	for i := range text {
		if _, rest, err := readRecord(text[:i]); err != nil || rest != nil {
			t.Errorf("%d of %d bytes of a record: then %q, %v", i, len(text), rest, err)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(vector(f, "header"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := readHeader(b)
		var late arrival // which gets it byte by byte
		var whole Header
		var end []byte
		var wrong error
		for i := 0; i < len(b) && end == nil && wrong == nil; i++ {
			whole, end, wrong = late.take(b[i : i+1])
		}
		if whole != h || (end == nil) != (rest == nil) || (wrong == nil) != (err == nil) {
			t.Errorf("%x: %+v, %v at once, %+v, %v byte by byte", b, h, err, whole, wrong)
		}
		if err != nil || rest == nil {
			return
		}
		if again := h.append(nil); !bytes.Equal(b, append(again, rest...)) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	f.Add(vector(f, "reply"))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		refusal, err := readReply(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again := appendReply(nil, refusal); !bytes.HasPrefix(b, again) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func FuzzReadRecord(f *testing.F) {
	f.Add(vector(f, "record"))
	f.Add(record{kind: recordWindow, id: 7, bytes: 1 << 40}.append(nil))
	f.Add(record{kind: recordGoAway, reason: "bye"}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := readRecord(b)
		if err != nil && !errors.Is(err, errProtocol) {
			t.Errorf("error of no known kind: %v", err)
		}
		if rest == nil {
			return
		}
		if r.kind < recordWindow || r.kind > recordListenEnded || len(r.reason) > maxTarget {
			return // skipped, or longer than we send
		}
		again, _, err := readRecord(r.append(nil))
		if err != nil || (fixedSize(r.kind) != 4 && r.kind != recordWindow && again != r) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

// FuzzDemux feeds arbitrary bytes to a server session, as a peer would that knows
// smux but means no good.
func FuzzDemux(f *testing.F) {
	syn := []byte{2, frameSYN, 0, 0, 3, 0, 0, 0}
	f.Add(append(bytes.Clone(syn), 2, framePSH, 3, 0, 3, 0, 0, 0, 7, 0, 0))
	f.Add(append(bytes.Clone(syn), 2, frameSYN, 0, 0, 5, 0, 0, 0, 2, framePSH, 4, 0, 5, 0, 0, 0, 1, 0, 1, 'x', 2, frameFIN, 0, 0, 5, 0, 0, 0))
	f.Add([]byte{2, frameUPD, 8, 0, 3, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2, frameNOP, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Server(newScript(b), Config{MaxStreams: 4})
		if err != nil {
			t.Fatal(err)
		}
		<-s.Done() // the script ends the link
		s.Close("", 0)
		if n := s.held.Load(); n != 0 {
			t.Errorf("%d bytes charged after the end", n)
		}
	})
}
