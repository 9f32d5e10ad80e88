package carrier

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// queue is one direction of an HTTP pipe: a bounded queue of bytes between a
// net.Conn, which has deadlines, and HTTP requests, which have contexts. Each
// operation takes a context or, if it is the conn's, nil.
type queue struct {
	memory *pipeMemory // that the chunks count for; nil: none

	mu      sync.Mutex
	changed sync.Cond // on mu
	chunks  []*chunk  // hold the bytes; none when there are none
	head    int       // of chunks[0]: where the bytes begin
	n       int       // bytes
	limit   int       // writers wait when n has reached it
	in, out int64     // bytes written and read since the beginning
	turn    int       // of the request that may read; the older ones have lost theirs
	end     error     // what comes after the bytes; nil: more bytes. io.EOF: no more

	deadline time.Time // of the conn; zero: none
	timer    *time.Timer
}

// chunk is a piece of memory that queues share: most are empty at any moment.
type chunk [32 << 10]byte

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// errGap means an offset past what there was so far.
var errGap = errors.New("bytes of the pipe are missing")

// errTurn means that a later request has taken over.
var errTurn = errors.New("another request reads the pipe")

func newQueue(limit int, memory *pipeMemory) *queue {
	q := &queue{limit: limit, memory: memory}
	q.changed.L = &q.mu
	return q
}

// wait waits until something changes, if anything may still come of it. mu is held.
func (q *queue) wait(ctx context.Context) error {
	switch {
	case ctx == nil:
		if q.overdue() {
			return os.ErrDeadlineExceeded
		}
		q.changed.Wait()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		stop := context.AfterFunc(ctx, q.wake)
		q.changed.Wait()
		stop()
	}
	return nil
}

func (q *queue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changed.Broadcast()
}

func (q *queue) overdue() bool { return !q.deadline.IsZero() && !time.Now().Before(q.deadline) }

// setDeadline is that of the conn's end.
func (q *queue) setDeadline(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deadline = t
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	if !t.IsZero() && q.end == nil {
		q.timer = time.AfterFunc(time.Until(t), q.wake)
	}
	q.changed.Broadcast()
}

// write appends p, and waits for room.
func (q *queue) write(ctx context.Context, p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx == nil && q.overdue() {
		return 0, os.ErrDeadlineExceeded
	}
	return q.put(ctx, q.in, p)
}

// writeAt is write for bytes that may have come before: p stands at the offset.
// What the queue has had already is skipped, also what others write meanwhile.
func (q *queue) writeAt(ctx context.Context, offset int64, p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if offset > q.in {
		return 0, errGap
	}
	return q.put(ctx, offset, p)
}

// put does it. It returns how far it got into p. mu is held.
func (q *queue) put(ctx context.Context, offset int64, p []byte) (int, error) {
	for {
		done := int(min(q.in-offset, int64(len(p))))
		switch {
		case done == len(p):
			return done, nil
		case q.end == io.EOF: //nolint:errorlint // it is never wrapped
			return done, net.ErrClosed
		case q.end != nil:
			return done, q.end
		case q.n >= q.limit || !q.add(p[done:min(len(p), done+q.limit-q.n)]):
			if err := q.wait(ctx); err != nil {
				return done, err
			}
		}
	}
}

// add appends what there is memory for, and reports whether that is anything. If not,
// bytes wait, and when they are read there is.
func (q *queue) add(p []byte) bool {
	before := q.in
	for len(p) > 0 {
		at := q.head + q.n
		if at == len(q.chunks)*len(chunk{}) {
			if !q.memory.chunk(len(q.chunks)) {
				break
			}
			q.chunks = append(q.chunks, chunks.Get().(*chunk))
		}
		m := copy(q.chunks[at/len(chunk{})][at%len(chunk{}):], p)
		q.n += m
		q.in += int64(m)
		p = p[m:]
	}
	q.changed.Broadcast()
	return q.in > before
}

// read reads what there is, and waits for the first byte.
func (q *queue) read(ctx context.Context, p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx == nil && q.overdue() {
		return 0, os.ErrDeadlineExceeded
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if n, err := q.take(p); n > 0 || err != nil {
			return n, err
		}
		if err := q.wait(ctx); err != nil {
			return 0, err
		}
	}
}

// tryRead is a read of the conn that does not wait.
func (q *queue) tryRead(p []byte) (n int, err error, ready bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, err = q.take(p)
	return n, err, n > 0 || err != nil
}

// begin gives a request its turn to read, if it has had what others have read,
// and takes it from the request before.
func (q *queue) begin(offset int64) (turn int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if offset != q.out {
		return 0, false
	}
	q.turn++
	q.changed.Broadcast()
	return q.turn, true
}

// ready waits for the first byte and returns how many there are.
func (q *queue) ready(ctx context.Context, turn int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case turn != q.turn:
			return 0, errTurn
		case q.n > 0:
			return q.n, nil
		case q.end != nil:
			return 0, q.end
		}
		if err := q.wait(ctx); err != nil {
			return 0, err
		}
	}
}

// readTurn reads what there is, for the request whose turn it is.
func (q *queue) readTurn(turn int, p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if turn != q.turn {
		return 0, errTurn
	}
	return q.take(p)
}

// take takes what there is and fits into p. mu is held.
func (q *queue) take(p []byte) (int, error) {
	if q.n == 0 {
		return 0, q.end
	}
	done := 0
	for done < len(p) && q.n > 0 {
		c := q.chunks[0]
		m := copy(p[done:], c[q.head:min(len(c), q.head+q.n)])
		done += m
		q.head += m
		q.n -= m
		if q.head == len(c) || q.n == 0 {
			q.chunks[0] = nil
			if q.chunks = q.chunks[1:]; len(q.chunks) == 0 {
				q.chunks = nil
			}
			chunks.Put(c)
			q.memory.chunkFreed()
			q.head = 0
		}
	}
	q.out += int64(done)
	q.changed.Broadcast()
	return done, nil
}

// over reports whether nothing can be read any more.
func (q *queue) over() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n == 0 && q.end != nil
}

// ended reports whether nothing can be written any more.
func (q *queue) ended() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.end != nil
}

// received is how many bytes have been written so far.
func (q *queue) received() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.in
}

// resize changes how many bytes may wait.
func (q *queue) resize(limit int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = limit
	q.changed.Broadcast()
}

// finish ends the queue: after the bytes that wait comes io.EOF.
func (q *queue) finish() { q.stop(io.EOF, false) }

// fail ends the queue with err at once; what waits is forgotten. If it had been
// finished, its end stays.
func (q *queue) fail(err error) { q.stop(err, true) }

func (q *queue) stop(end error, drop bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if drop {
		for _, c := range q.chunks {
			chunks.Put(c)
			q.memory.chunkFreed()
		}
		q.chunks, q.head, q.n = nil, 0, 0
	}
	if q.end == nil {
		q.end = end
	}
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	q.changed.Broadcast()
}
