package link

import (
	"bytes"
	"testing"
	"time"

	"culvert/mux/link/linktest"
)

func vector(t testing.TB, name string) []byte { return linktest.Vector(t, "../PROTOCOL.md", name) }

func TestVectors(t *testing.T) {
	h := hello{resume: true, secure: true, received: 0x0102030405060708, maxMessage: 131072}
	for i := range h.id {
		h.id[i] = byte(i)
	}
	if got := h.encode(); !bytes.Equal(got, vector(t, "hello")) {
		t.Errorf("hello %x", got)
	}
	if got, err := decodeHello(vector(t, "hello")); err != nil || got != h {
		t.Errorf("hello %+v, %v", got, err)
	}
	r := reply{resumed: true, received: 0x1112131415161718, maxMessage: 65536, window: time.Minute}
	if got := r.encode(); !bytes.Equal(got, vector(t, "welcome")) {
		t.Errorf("reply %x", got)
	}
	if got, err := decodeReply(vector(t, "welcome")); err != nil || got != r {
		t.Errorf("reply %+v, %v", got, err)
	}
	data := make([]byte, headerSize, 64)
	putHeader(data, typeData, 5, 1000)
	if got := seal(append(data, "hi"...), true); !bytes.Equal(got, vector(t, "data")) {
		t.Errorf("data %x", got)
	}
}
