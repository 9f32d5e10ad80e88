package carriertest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Network is a net.Listener in memory, with the Dial to reach it. The zero value
// is not ready: use [NewNetwork].
type Network struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewNetwork returns a Network, which is to be closed as a listener.
func NewNetwork() *Network {
	return &Network{accept: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to the listener by way of a [Path] that is forgotten; it has the
// signature of carrier.Dialer.NetDial.
func (n *Network) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := NewPath().Ends()
	if err := n.Connect(ctx, server); err != nil {
		return nil, err
	}
	return client, nil
}

// Connect gives conn to Accept. It blocks until it is accepted.
func (n *Network) Connect(ctx context.Context, conn net.Conn) error {
	select {
	case n.accept <- conn:
		return nil
	case <-n.closed:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Accept returns the server's end of the next connection.
func (n *Network) Accept() (net.Conn, error) {
	select {
	case conn := <-n.accept:
		return conn, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections stay.
func (n *Network) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

// Addr returns an address that means nothing.
func (n *Network) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "memory" }
func (addr) String() string  { return "memory" }

// Path is a connection in memory with buffers like TCP's, which can go wrong.
type Path struct {
	up, down *half // client to server, and back
}

// NewPath returns a Path whose buffers hold 256 KiB in each direction.
func NewPath() *Path {
	return &Path{newHalf(), newHalf()}
}

// Ends returns the two conns.
func (p *Path) Ends() (client, server net.Conn) {
	return &end{in: p.down, out: p.up}, &end{in: p.up, out: p.down}
}

// Stall makes the path swallow everything in both directions from now on,
// without telling either end.
func (p *Path) Stall() {
	p.up.swallow()
	p.down.swallow()
}

// Cut ends the connection for both, as a reset by something between them.
func (p *Path) Cut() {
	p.up.reset()
	p.down.reset()
}

// Slow lets no more than n bytes a second through from client to server, in
// pieces. 0 is unlimited again. Bytes on their way when it is called keep the
// pace of the call before.
func (p *Path) Slow(n int) { p.up.slow(n) }

// SlowDown is Slow from server to client.
func (p *Path) SlowDown(n int) { p.down.slow(n) }

// Written returns how many bytes the client and the server have written so far.
func (p *Path) Written() (client, server int) { return p.up.count(), p.down.count() }

// Writes returns how often the client and the server have called Write, which on
// a socket is a system call each.
func (p *Path) Writes() (client, server int) { return p.up.callCount(), p.down.callCount() }

var errReset = errors.New("connection reset by the path")

const capacity = 256 << 10

// half is one direction.
type half struct {
	mu        sync.Mutex
	buf       []byte
	changed   chan struct{} // closed and replaced when something changes
	eof       bool          // the writer has closed
	gone      bool          // the reader has closed
	err       error
	swallowed bool
	rate      int // bytes a second; 0: no limit
	written   int // bytes in all
	calls     int // of write
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

// tell wakes those who wait. mu is held.
func (h *half) tell() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.tell()
}

func (h *half) swallow()   { h.set(func() { h.swallowed = true }) }
func (h *half) reset()     { h.set(func() { h.err = errReset }) }
func (h *half) slow(n int) { h.set(func() { h.rate = n }) }

func (h *half) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.written
}

func (h *half) callCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

// write blocks while the buffer is full.
func (h *half) write(p []byte, d *deadline) (n int, err error) {
	h.mu.Lock()
	h.calls++
	h.mu.Unlock()
	for len(p) > 0 {
		if d.past() { // also where there is room, as with a socket
			return n, os.ErrDeadlineExceeded
		}
		h.mu.Lock()
		switch {
		case h.err != nil:
			err = h.err
		case h.eof:
			err = net.ErrClosed
		case h.gone:
			err = io.ErrClosedPipe
		}
		if err != nil {
			h.mu.Unlock()
			return n, err
		}
		m := min(len(p), capacity-len(h.buf))
		if m > 0 {
			h.buf = append(h.buf, p[:m]...)
			p, n = p[m:], n+m
			h.written += m
			h.tell()
			h.mu.Unlock()
			continue
		}
		changed := h.changed
		h.mu.Unlock()
		if err := d.wait(changed); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (h *half) read(p []byte, d *deadline) (int, error) {
	for {
		if d.over() {
			return 0, os.ErrDeadlineExceeded
		}
		h.mu.Lock()
		switch {
		case h.err != nil:
			defer h.mu.Unlock()
			return 0, h.err
		case h.gone:
			h.mu.Unlock()
			return 0, net.ErrClosed
		case h.swallowed: // nothing arrives any more, not even the end
		case len(h.buf) > 0:
			n := min(len(p), len(h.buf))
			if h.rate > 0 {
				n = min(n, max(1, h.rate/2))
			}
			rate := h.rate
			copy(p, h.buf[:n])
			h.buf = h.buf[:copy(h.buf, h.buf[n:])]
			h.tell()
			h.mu.Unlock()
			if rate > 0 {
				<-time.After(time.Duration(n) * time.Second / time.Duration(rate))
			}
			return n, nil
		case h.eof:
			h.mu.Unlock()
			return 0, io.EOF
		}
		changed := h.changed
		h.mu.Unlock()
		if err := d.wait(changed); err != nil {
			return 0, err
		}
	}
}

type end struct {
	in, out                     *half
	readDeadline, writeDeadline deadline
}

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p, &e.readDeadline) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p, &e.writeDeadline) }
func (e *end) LocalAddr() net.Addr         { return addr{} }
func (e *end) RemoteAddr() net.Addr        { return addr{} }

func (e *end) Close() error {
	e.in.set(func() { e.in.gone = true })
	e.out.set(func() { e.out.eof = true })
	return nil
}

func (e *end) CloseWrite() error {
	e.out.set(func() { e.out.eof = true })
	return nil
}

func (e *end) SetDeadline(t time.Time) error {
	e.readDeadline.set(t)
	e.writeDeadline.set(t)
	return nil
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.readDeadline.set(t)
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	e.writeDeadline.set(t)
	return nil
}

// deadline is one of a conn's.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{} // closed and replaced by set; nil until somebody waits
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

func (d *deadline) over() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

// past reports whether the deadline was before this instant, which in a bubble lasts.
func (d *deadline) past() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && time.Now().After(d.at)
}

// wait waits for ready, or until the deadline.
func (d *deadline) wait(ready <-chan struct{}) error {
	for {
		d.mu.Lock()
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed, at := d.changed, d.at
		d.mu.Unlock()

		var over <-chan time.Time
		if !at.IsZero() {
			timer := time.NewTimer(time.Until(at))
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-ready:
			return nil
		case <-changed:
		case <-over:
			return os.ErrDeadlineExceeded
		}
	}
}
