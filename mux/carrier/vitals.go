package carrier

import (
	"sync"
	"sync/atomic"
	"time"
)

// vitals are the signs of life of one connection. All times are nanoseconds
// since its beginning, never 0; all methods may be called concurrently.
type vitals struct {
	born time.Time

	reading  atomic.Int64 // when the Read of the socket that is in progress began; 0: none is
	received atomic.Int64 // when a byte was last received
	written  atomic.Int64 // when something was last written
	pending  atomic.Int64 // when a message or ping was first written after the last byte received; 0: none was
	asked    atomic.Int64 // when a ping was first written after pending was set; 0: none was

	inflow atomic.Int64 // bytes received since something was last written

	lull     atomic.Int64 // the longest time without a byte before a message or ping since pending was set
	survived atomic.Int64 // the longest lull after which something came
	ended    atomic.Int64 // when the Conn died; 0: it lives

	waited atomic.Bool // somebody waits for the next byte
	mu     sync.Mutex
	next   chan struct{} // closed by the next byte; guarded by mu
}

func newVitals() *vitals {
	v := &vitals{born: time.Now()}
	v.received.Store(1)
	v.written.Store(1)
	return v
}

func (v *vitals) now() int64 { return int64(time.Since(v.born)) + 1 }

func (v *vitals) readBegins() { v.reading.Store(v.now()) }

// readEnds notes that the Read in progress has returned n bytes.
func (v *vitals) readEnds(n int) {
	if n > 0 {
		v.received.Store(v.now())
		if v.pending.Load() != 0 {
			v.survived.Store(max(v.survived.Load(), v.lull.Swap(0)))
			v.pending.Store(0)
		}
		if v.asked.Load() != 0 {
			v.asked.Store(0)
		}
		v.inflow.Add(int64(n))
		if v.waited.Load() {
			v.mu.Lock()
			if v.next != nil {
				close(v.next)
				v.next = nil
				v.waited.Store(false)
			}
			v.mu.Unlock()
		}
	}
	v.reading.Store(0)
}

// wrote notes that bytes that need no answer are on their way to the peer.
func (v *vitals) wrote() {
	v.written.Store(v.now())
	v.inflow.Store(0)
}

// wroteMessage notes a message, after which the peer may send something.
func (v *vitals) wroteMessage() { v.expect() }

// wrotePing notes a ping, which the peer has to answer.
func (v *vitals) wrotePing() {
	if now, first := v.expect(); !first {
		v.asked.CompareAndSwap(0, now)
	}
}

// expect notes that something was written now after which the peer may send
// something, and reports whether it is the first such thing after the last byte
// received.
func (v *vitals) expect() (now int64, first bool) {
	now = v.now()
	quiet := now - max(v.written.Swap(now), v.received.Load())
	v.inflow.Store(0)
	first = v.pending.CompareAndSwap(0, now)
	v.lull.Store(max(v.lull.Load(), quiet))
	return now, first
}

// waitAgain makes the time that was waited for an answer begin now.
func (v *vitals) waitAgain(now int64) {
	for _, since := range []*atomic.Int64{&v.pending, &v.asked} {
		if old := since.Load(); old != 0 {
			since.CompareAndSwap(old, now)
		}
	}
}

// nextByte returns a channel that is closed when the next byte is received.
func (v *vitals) nextByte() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.next == nil {
		v.next = make(chan struct{})
		v.waited.Store(true)
	}
	return v.next
}
