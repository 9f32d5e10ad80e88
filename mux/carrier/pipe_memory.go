package carrier

import "sync/atomic"

// pipeMemory bounds what a server's pipes hold, all together: what waits in their
// queues and the large buffers of their requests. A queue may hold as much as nobody
// holds yet, so that the more there is, the less each gets, and one pipe alone gets
// half of it. Each may hold one chunk in any case, so that no pipe stands still. A nil
// *pipeMemory, that of a client, has no bound.
type pipeMemory struct {
	limit int64
	used  atomic.Int64
}

// chunk counts one more chunk for a queue that has so many, unless it has to wait.
func (m *pipeMemory) chunk(has int) bool {
	const size = int64(len(chunk{}))
	if m == nil {
		return true
	}
	for {
		used := m.used.Load()
		if has > 0 && int64(has+1)*size > m.limit-used {
			return false
		}
		if m.used.CompareAndSwap(used, used+size) {
			return true
		}
	}
}

// chunkFreed gives it back.
func (m *pipeMemory) chunkFreed() { m.free(len(chunk{})) }

func (m *pipeMemory) free(n int) {
	if m != nil {
		m.used.Add(-int64(n))
	}
}

// smallBuffer is as long as what net/http has read ahead of a body.
const smallBuffer = 4 << 10

// buffer returns a buffer for a body, a small one unless most of the memory is free:
// bodies that stand still are not to take it from those that move. It is used until
// done is called.
func (m *pipeMemory) buffer() (buf []byte, done func()) {
	const size = len([64 << 10]byte{})
	for {
		used := m.used.Load()
		if used+int64(size) > m.limit/2 {
			return make([]byte, smallBuffer), func() {}
		}
		if m.used.CompareAndSwap(used, used+int64(size)) {
			b := buffers.Get().(*[size]byte)
			return b[:], func() {
				buffers.Put(b)
				m.free(size)
			}
		}
	}
}
