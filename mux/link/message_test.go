package link

import (
	"errors"
	"math"
	"testing"
	"time"
)

// What a message must not be, with a checksum and without one.
func TestParse(t *testing.T) {
	const short = headerSize - 1
	tests := []struct {
		name   string
		kind   byte
		offset uint64
		size   int // of the payload
		bad    bool
	}{
		{"data", typeData, math.MaxUint64 - 3, 3, false},
		{"empty data", typeData, 0, 0, false},
		{"bye", typeBye, 7, maxReason, false},
		{"type 0", 0, 0, 1, true},
		{"last", typeLast, 7, 0, false},
		{"last with bytes", typeLast, 7, 1, true},
		{"type 4", 4, 0, 1, true},
		{"offset overflow", typeData, math.MaxUint64 - 3, 4, true},
		{"long reason", typeBye, 7, maxReason + 1, true},
		{"short", typeData, 0, short - headerSize, true},
		{"no bytes", typeData, 0, -headerSize, true},
	}
	for _, test := range tests {
		for _, checksum := range []bool{true, false} {
			b := make([]byte, headerSize, headerSize+maxReason+1+trailerSize)
			putHeader(b, test.kind, test.offset, 9)
			m, err := parse(seal(b[:headerSize+test.size], checksum), checksum)
			switch {
			case test.bad:
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%s, checksum %v: %v, want %v", test.name, checksum, err, ErrProtocol)
				}
			case err != nil || m.kind != test.kind || m.offset != test.offset || m.ack != 9 || len(m.payload) != test.size:
				t.Errorf("%s, checksum %v: type %d, offset %d, ack %d, %d bytes, %v",
					test.name, checksum, m.kind, m.offset, m.ack, len(m.payload), err)
			}
		}
	}
}

// A handshake of a later version may be longer, and one that a bit flip made is
// not taken for another version.
func TestDecodeHandshake(t *testing.T) {
	h := hello{resume: true, id: newSessionID(), received: 7, maxMessage: minMaxMessage}
	r := reply{secure: true, received: 8, maxMessage: minMaxMessage, window: time.Minute}
	small, smallReply := h, r
	small.maxMessage--
	smallReply.maxMessage--
	resealed := func(b []byte) []byte { return seal(b, true) }
	for _, test := range []struct {
		name string
		edit func(b []byte) []byte
		want error
	}{
		{"as it is", func(b []byte) []byte { return b }, nil},
		{"grown", func(b []byte) []byte { return resealed(append(b[:len(b)-trailerSize], "more"...)) }, nil},
		{"cut", func(b []byte) []byte { return resealed(b[:len(b)-trailerSize-1]) }, ErrMalformed},
		{"no bytes", func([]byte) []byte { return nil }, ErrMalformed},
		{"version 2", func(b []byte) []byte { b[0] = 2; return resealed(b[:len(b)-trailerSize]) }, ErrVersion},
		{"version 0", func(b []byte) []byte { b[0] = 0; return resealed(b[:len(b)-trailerSize]) }, ErrVersion},
		{"flipped version", func(b []byte) []byte { b[0] = 2; return b }, ErrMalformed},
	} {
		if got, err := decodeHello(test.edit(h.encode())); !errors.Is(err, test.want) || err == nil && got != h {
			t.Errorf("hello, %s: %+v, %v; want %v", test.name, got, err, test.want)
		}
		if got, err := decodeReply(test.edit(r.encode())); !errors.Is(err, test.want) || err == nil && got != r {
			t.Errorf("reply, %s: %+v, %v; want %v", test.name, got, err, test.want)
		}
	}
	if _, err := decodeHello(small.encode()); !errors.Is(err, ErrMalformed) {
		t.Errorf("hello with messages of %d bytes: %v, want %v", small.maxMessage, err, ErrMalformed)
	}
	if _, err := decodeReply(smallReply.encode()); !errors.Is(err, ErrMalformed) {
		t.Errorf("reply with messages of %d bytes: %v, want %v", small.maxMessage, err, ErrMalformed)
	}
}
