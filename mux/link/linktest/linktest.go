package linktest

import (
	"errors"
	"sync"
	"sync/atomic"
)

// ErrCut is what both ends of a carrier see after [Pipe.Cut].
var ErrCut = errors.New("carrier cut")

var errClosed = errors.New("carrier closed")

// Carrier is one end of a pipe of messages. It is a link.Carrier.
type Carrier struct {
	out, in *queue
	secure  bool
	name    string
	closed  atomic.Bool
	rest    [][]byte // that Flush is to send
	idle    func()
}

// Pipe is a carrier in memory, with both its ends.
type Pipe struct {
	Client, Server *Carrier
}

// NewPipe returns a pipe that holds up to depth messages in each direction.
func NewPipe(depth int, secure bool) *Pipe {
	up, down := newQueue(depth), newQueue(depth)
	return &Pipe{
		Client: &Carrier{out: up, in: down, secure: secure, name: "server"},
		Server: &Carrier{out: down, in: up, secure: secure, name: "client"},
	}
}

// Cut ends the pipe at once; messages under way are lost.
func (p *Pipe) Cut() {
	p.Client.out.fail(ErrCut, true)
	p.Client.in.fail(ErrCut, true)
}

// CutUnnoticed cuts the pipe in a way that only the client notices: what the
// server writes vanishes, and it waits for more to read.
func (p *Pipe) CutUnnoticed() {
	p.Client.in.deafen()
	q := p.Client.out
	q.mu.Lock()
	q.mute, q.messages = true, nil
	q.cond.Broadcast()
	q.mu.Unlock()
}

// Hold makes messages of one direction wait in the pipe until it is called
// again with false.
func (p *Pipe) Hold(toServer, on bool) {
	q := p.Client.in
	if toServer {
		q = p.Client.out
	}
	q.mu.Lock()
	q.held = on
	q.cond.Broadcast()
	q.mu.Unlock()
}

// Filter has f look at each message of one direction before it is delivered; it
// returns the messages to deliver instead.
func (p *Pipe) Filter(toServer bool, f func(m []byte) [][]byte) {
	q := p.Client.in
	if toServer {
		q = p.Client.out
	}
	q.mu.Lock()
	q.filter = f
	q.mu.Unlock()
}

// AwaitMessage waits until there is a message, or none will come.
func (c *Carrier) AwaitMessage() error {
	if c.idle != nil && c.in.empty() {
		c.idle()
	}
	return c.in.await()
}

// ReadMessage reads the next message into p.
func (c *Carrier) ReadMessage(p []byte) (int, error) {
	if err := c.AwaitMessage(); err != nil {
		return 0, err
	}
	return c.in.pop(p)
}

// OnIdle has ReadMessage call f before it waits.
func (c *Carrier) OnIdle(f func()) { c.idle = f }

// WriteMessages queues copies of v as long as the pipe is not full.
func (c *Carrier) WriteMessages(v ...[]byte) (sent bool, err error) {
	c.rest = v
	return c.push(false)
}

// Flush queues the rest, and waits while the pipe is full.
func (c *Carrier) Flush() error {
	_, err := c.push(true)
	return err
}

func (c *Carrier) push(wait bool) (sent bool, err error) {
	for len(c.rest) > 0 {
		if sent, err := c.out.push(c.rest[0], wait); err != nil || !sent {
			return false, err
		}
		c.rest = c.rest[1:]
	}
	return true, nil
}

// Close lets the peer read what was written, and then end; what the peer still
// writes is dropped.
func (c *Carrier) Close(string) error {
	c.closed.Store(true)
	c.out.fail(errClosed, false)
	c.in.deafen()
	return nil
}

// Abort ends both directions at once. After Close it does nothing: the peer's
// writer must not fail before its reader has read what was written.
func (c *Carrier) Abort(cause error) {
	if c.closed.Load() {
		return
	}
	c.out.fail(cause, true)
	c.in.fail(cause, true)
}

// Secure is what NewPipe was told.
func (c *Carrier) Secure() bool { return c.secure }

// RemoteAddr names the other end.
func (c *Carrier) RemoteAddr() string { return c.name }

// SetUnsentLimit does nothing.
func (c *Carrier) SetUnsentLimit(int) {}

// queue is one direction.
type queue struct {
	mu       sync.Mutex
	cond     sync.Cond
	depth    int
	messages [][]byte
	held     bool
	spare    [][]byte // of messages that were read
	filter   func([]byte) [][]byte
	deaf     bool // the reader is gone, the writer need not know
	mute     bool // the writer is gone, the reader need not know
	err      error
}

func newQueue(depth int) *queue {
	q := &queue{depth: depth}
	q.cond.L = &q.mu
	return q
}

func (q *queue) fail(err error, lose bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	if lose {
		q.messages = nil
	}
	q.cond.Broadcast()
}

func (q *queue) deafen() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deaf, q.messages = true, nil
	q.cond.Broadcast()
}

func (q *queue) push(p []byte, wait bool) (sent bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.messages) >= q.depth && q.err == nil && !q.deaf && !q.mute {
		if !wait {
			return false, nil
		}
		q.cond.Wait()
	}
	switch {
	case q.err != nil:
		return false, q.err
	case q.mute:
		return false, ErrCut
	case q.deaf:
		return true, nil
	}
	if q.filter != nil {
		q.messages = append(q.messages, q.filter(append([]byte(nil), p...))...)
	} else {
		var m []byte
		if n := len(q.spare); n > 0 {
			m, q.spare = q.spare[n-1], q.spare[:n-1]
		}
		q.messages = append(q.messages, append(m, p...))
	}
	q.cond.Broadcast()
	return true, nil
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages) == 0 || q.held
}

// await waits for something to pop.
func (q *queue) await() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.awaitLocked()
}

func (q *queue) awaitLocked() error {
	for (len(q.messages) == 0 || q.held) && (q.err == nil || q.held && len(q.messages) > 0) && !q.deaf {
		q.cond.Wait()
	}
	switch {
	case q.deaf:
		return errClosed
	case len(q.messages) == 0:
		return q.err
	}
	return nil
}

func (q *queue) pop(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.awaitLocked(); err != nil {
		return 0, err
	}
	m := q.messages[0]
	q.messages = q.messages[:copy(q.messages, q.messages[1:])]
	q.cond.Broadcast()
	if len(m) > len(p) {
		return 0, errors.New("message does not fit")
	}
	if q.filter == nil { // which might have kept it
		q.spare = append(q.spare, m[:0])
	}
	return copy(p, m), nil
}
