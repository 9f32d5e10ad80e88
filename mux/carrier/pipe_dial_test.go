package carrier

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// hasty is a conn whose peer answers a body that is still on its way.
type hasty struct {
	net.Conn
	answer io.Reader
	begin  chan struct{} // lets it be read
	bodies chan []byte   // gets each part that is written of a body
	next   chan struct{} // lets it be written
	end    chan struct{} // of everything
	large  chan struct{} // closed by a body
	once   sync.Once
}

func (c *hasty) Write(p []byte) (int, error) {
	if len(p) < 32<<10 {
		return len(p), nil
	}
	c.once.Do(func() { close(c.large) })
	select {
	case c.bodies <- p:
		<-c.next
		return len(p), nil
	case <-c.end:
		return 0, net.ErrClosed
	}
}

func (c *hasty) Read(p []byte) (int, error) {
	select {
	case <-c.large:
		<-c.begin
		return c.answer.Read(p)
	case <-c.end:
		return 0, net.ErrClosed
	}
}

func (c *hasty) Close() error { return nil }

// A body that was answered early, and is still being written, is nobody else's yet.
func TestPipeBodyAnsweredEarly(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // there is one pool
	begin, parts, next, end := make(chan struct{}), make(chan []byte), make(chan struct{}), make(chan struct{})
	defer close(end)
	defer close(next)
	d := &Dialer{URL: &url.URL{Scheme: "ws", Host: "a"}, NetDial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		return &hasty{
			Conn: near, answer: strings.NewReader("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
			begin: begin, bodies: parts, next: next, end: end, large: make(chan struct{}),
		}, nil
	}}
	r, err := d.request(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.connectPipe(d.URL, r)
	if err != nil {
		t.Fatal(err)
	}
	defer k.closeSocket()
	p := k.socket.(*clientPipe)
	_, _ = k.Conn.Write(bytes.Repeat([]byte{1}, firstBody))
	<-parts
	close(begin)
	<-p.ctx.Done()
	if p.failure.Load() == nil {
		t.Error("it has ended without a failure")
	}
	for range 10 {
		other := bodies.Get().(*[]byte)
		*other = append((*other)[:0], make([]byte, firstBody)...)
	}
	next <- struct{}{}
	if part := <-parts; part[len(part)-1] != 1 {
		t.Error("it was overwritten")
	}
}

// Polls that were cut wait as long as in the beginning again when nothing cuts them any
// more. Where something does, that is tried more and more seldom.
func TestPollWait(t *testing.T) {
	now := time.Now()
	p := newPollWait()
	for range 10 { // of an outage
		p.cut(p.wait/2, now)
	}
	if p.wait != minWait {
		t.Fatalf("they wait %v", p.wait)
	}
	began := now
	for p.wait < firstWait && now.Sub(began) < time.Hour {
		now = now.Add(p.wait)
		p.answered(now)
	}
	if took := now.Sub(began); took > 10*firstCalm {
		t.Errorf("they waited shorter for %v", took)
	}

	const limit = 3 * time.Second
	cuts := 0
	for began = now; now.Sub(began) < 12*time.Hour; {
		if p.wait > limit {
			cuts++
			now = now.Add(limit)
			p.cut(limit, now)
		} else {
			now = now.Add(p.wait)
			p.answered(now)
		}
	}
	if cuts < 5 || cuts > 20 {
		t.Errorf("%d polls cut in 12 hours", cuts)
	}
}
