package mux

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What goes in comes out, whatever the pieces, and in no more memory than twice
// as much and a chunk.
func TestInbox(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var b inbox
	var want []byte
	next := byte(0)
	for range 20_000 {
		if b.empty() != (len(want) == 0) {
			t.Fatalf("empty %v with %d bytes", b.empty(), len(want))
		}
		if rng.IntN(2) == 0 || len(want) == 0 {
			p := make([]byte, 1+rng.IntN(1+rng.IntN(100_000)))
			for i := range p {
				next++
				p[i] = next
			}
			if len(want) < 1<<20 {
				b.put(p)
				want = append(want, p...)
				clear(p) // copied
			}
		} else {
			p := b.front()
			n := 1 + rng.IntN(len(p))
			if !bytes.Equal(p[:n], want[:n]) {
				t.Fatalf("%d bytes differ", n)
			}
			b.take(n)
			want = want[n:]
		}
		if most := int64(2*len(want) + 2*maxChunk); b.held > most {
			t.Fatalf("%d bytes held for %d", b.held, len(want))
		}
	}
	for !b.empty() {
		b.take(len(b.front()))
	}
	if b.held != 0 || cap(b.chunks) > 100 {
		t.Errorf("%d bytes held by an empty inbox, with room for %d chunks", b.held, cap(b.chunks))
	}
}

// Tiny pieces share chunks, and a large one has its own.
func TestInboxChunks(t *testing.T) {
	var b inbox
	for range 3000 {
		b.put([]byte{1})
	}
	if want := int64(512 + 1024 + 2048); b.held != want || len(b.chunks) != 3 {
		t.Errorf("%d bytes in %d chunks for 3,000 pieces, want %d in 3", b.held, len(b.chunks), want)
	}
	b.drop()
	b.put(make([]byte, maxFrame))
	if b.held != maxChunk || len(b.chunks) != 1 {
		t.Errorf("%d bytes in %d chunks for one piece of %d", b.held, len(b.chunks), maxFrame)
	}
	if b.drop(); !b.empty() || b.held != 0 {
		t.Error("something is left")
	}
}
