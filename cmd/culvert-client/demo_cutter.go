package main

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// cutter is a TCP relay that can reset all its connections, as middleboxes do.
type cutter struct {
	listener net.Listener
	running  sync.WaitGroup
	// resumed gets the time from a cut to the server's first bytes on the next
	// connection, which are its answer to the resume.
	resumed chan time.Duration
	moved   atomic.Int64 // bytes that came from the server

	mu      sync.Mutex
	closed  bool
	pairs   map[*pair]struct{}
	cuts    int
	cutAt   time.Time
	waiting bool // for the first bytes after a cut
}

// pair is a connection and its continuation.
type pair struct {
	client, server *net.TCPConn
	cuts           int // before it was made
}

// newCutter opens the relay's listener; start begins to use it.
func newCutter(ctx context.Context) (*cutter, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0") //nolint:forbidigo // the bad network of the demonstration
	if err != nil {
		return nil, err
	}
	return &cutter{listener: listener, resumed: make(chan time.Duration, 1), pairs: make(map[*pair]struct{})}, nil
}

func (c *cutter) addr() string { return c.listener.Addr().String() }

// start relays to target from now on; the end of ctx ends new connections only.
func (c *cutter) start(ctx context.Context, target string) {
	dial := func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", target) //nolint:forbidigo // the bad network of the demonstration
	}
	c.running.Go(func() {
		for {
			conn, err := c.listener.Accept()
			if err != nil {
				return
			}
			c.running.Go(func() { c.relay(conn.(*net.TCPConn), dial) })
		}
	})
}

// relay copies both ways until one of them ends.
func (c *cutter) relay(client *net.TCPConn, dial func() (net.Conn, error)) {
	defer client.Close()
	conn, err := dial()
	if err != nil {
		return
	}
	defer conn.Close()
	p := &pair{client: client, server: conn.(*net.TCPConn)}
	if !c.add(p) {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(p.server, p.client)
		p.server.Close()
		p.client.Close()
	})
	buffer := make([]byte, 64<<10)
	for {
		n, err := p.server.Read(buffer)
		if n > 0 {
			c.note(p, n)
			if _, err := p.client.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	p.server.Close()
	p.client.Close()
	up.Wait()
	c.mu.Lock()
	delete(c.pairs, p)
	c.mu.Unlock()
}

func (c *cutter) add(p *pair) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	p.cuts = c.cuts
	c.pairs[p] = struct{}{}
	return true
}

// note takes notice of bytes from the server.
func (c *cutter) note(p *pair, n int) {
	c.moved.Add(int64(n))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting && p.cuts == c.cuts {
		c.waiting = false
		c.resumed <- time.Since(c.cutAt)
	}
}

// cut resets all connections, in the middle of whatever they carry, and reports
// whether there was one. Who cuts takes the next value of resumed before cutting
// again.
func (c *cutter) cut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pairs) == 0 {
		return false
	}
	c.cuts++
	c.cutAt, c.waiting = time.Now(), true
	c.resetLocked()
	return true
}

func (c *cutter) resetLocked() {
	for p := range c.pairs {
		delete(c.pairs, p)
		for _, conn := range []*net.TCPConn{p.client, p.server} {
			_ = conn.SetLinger(0) // an RST instead of a FIN
			_ = conn.Close()
		}
	}
}

// close ends the listener and all connections, and waits for them.
func (c *cutter) close() {
	_ = c.listener.Close()
	c.mu.Lock()
	c.closed = true
	c.resetLocked()
	c.mu.Unlock()
	c.running.Wait()
}
