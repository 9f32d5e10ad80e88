package tunnel

import (
	"sync"
	"sync/atomic"
)

// A relay reads into a chunk and keeps it until its stream has taken the bytes,
// which may be long if nobody reads them at the other end. Large chunks save a
// bulk transfer system calls and wake-ups; there are only so many, so that
// thousands of relays that are stuck hold small ones.
const (
	smallChunk = 60 << 10 // what fits into one frame
	largeChunk = 4 * smallChunk
	largeMax   = 32
)

// chunkPool hands out chunks.
type chunkPool struct {
	small, large sync.Pool
	largeTaken   atomic.Int32
}

var chunks = chunkPool{
	small: sync.Pool{New: func() any { return newChunk(smallChunk) }},
	large: sync.Pool{New: func() any { return newChunk(largeChunk) }},
}

func newChunk(size int) *[]byte {
	b := make([]byte, size)
	return &b
}

// take returns a chunk, which is to be given back.
func (p *chunkPool) take() *[]byte {
	if p.largeTaken.Add(1) <= largeMax {
		return p.large.Get().(*[]byte)
	}
	p.largeTaken.Add(-1)
	return p.small.Get().(*[]byte)
}

func (p *chunkPool) give(chunk *[]byte) {
	if len(*chunk) == largeChunk {
		p.largeTaken.Add(-1)
		p.large.Put(chunk)
		return
	}
	p.small.Put(chunk)
}
