package mux

import (
	"math/bits"
	"sync"
)

// inbox holds what was received and not read yet, in chunks that are as large as
// what came, within bounds: many tiny frames share one. It has no lock of its own.
type inbox struct {
	chunks []*chunk
	head   int   // index of the first that has bytes to be read
	held   int64 // memory that they take
}

// chunk is a piece of memory of which buf[start:end] is to be read.
type chunk struct {
	buf        []byte
	start, end int
}

const (
	minChunk = 512
	maxChunk = 64 << 10
)

// chunkPools are of chunks of minChunk, twice that, and so on.
var chunkPools [8]sync.Pool

// newChunk returns a chunk of n bytes or more, maxChunk at most.
func newChunk(n int) *chunk {
	class := bits.Len(uint(min(max(n, minChunk), maxChunk)-1) / minChunk)
	if c, ok := chunkPools[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{buf: make([]byte, minChunk<<class)}
}

func (c *chunk) free() {
	c.start, c.end = 0, 0
	chunkPools[bits.Len(uint(len(c.buf)-1)/minChunk)].Put(c)
}

func (b *inbox) empty() bool { return b.head == len(b.chunks) }

// put appends a copy of p.
func (b *inbox) put(p []byte) {
	size := 0
	if !b.empty() {
		last := b.chunks[len(b.chunks)-1]
		k := copy(last.buf[last.end:], p)
		last.end += k
		p = p[k:]
		size = 2 * len(last.buf)
	}
	for len(p) > 0 {
		c := newChunk(max(size, len(p)))
		c.end = copy(c.buf, p)
		p = p[c.end:]
		if b.head > 0 && len(b.chunks) == cap(b.chunks) {
			b.chunks = b.chunks[:copy(b.chunks, b.chunks[b.head:])]
			b.head = 0
		}
		b.chunks = append(b.chunks, c)
		b.held += int64(len(c.buf))
	}
}

// front is some of the bytes that come next. They stay valid until take.
func (b *inbox) front() []byte {
	c := b.chunks[b.head]
	return c.buf[c.start:c.end]
}

// take removes the first n bytes, which front returned.
func (b *inbox) take(n int) {
	c := b.chunks[b.head]
	if c.start += n; c.start < c.end {
		return
	}
	b.held -= int64(len(c.buf))
	b.chunks[b.head] = nil
	if b.head++; b.empty() {
		b.chunks, b.head = b.chunks[:0], 0
	}
	c.free()
}

// drop forgets everything, of which somebody may be reading still.
func (b *inbox) drop() { *b = inbox{} }
