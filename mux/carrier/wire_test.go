//go:build linux || darwin

package carrier

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
)

// wires returns the ends of a TCP connection.
func wires(t *testing.T) (near, far *wire) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return newWire(conn), newWire(peer)
}

// A Close that waits for the peer's close frame and a drain may read at once.
func TestWireTwoReaders(t *testing.T) {
	near, far := wires(t)
	near.onIdle(func() {})
	const size = 64
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for i := range 2 {
		wg.Go(func() {
			p := make([]byte, size>>i)
			for {
				n, err := near.Read(p)
				if n > len(p) || bytes.Count(p[:n], []byte{1}) != n {
					t.Errorf("%d bytes, of those sent: %d", n, bytes.Count(p, []byte{1}))
					return
				}
				clear(p)
				mu.Lock()
				total += n
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	const rounds = 2000
	for range rounds {
		if _, err := far.Write(bytes.Repeat([]byte{1}, size)); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	far.Close()
	wg.Wait()
	if total != rounds*size {
		t.Errorf("%d bytes arrived of %d", total, rounds*size)
	}
}

// overWire is like TLS over a wire.
type overWire struct {
	net.Conn
	wire *wire
}

func (o *overWire) NetConn() net.Conn { return o.wire }

// crypto/tls writes while it reads, to answer a KeyUpdate or with an alert, and
// then the reader waits for the peer. Whoever must not wait is not held up.
func TestCorkAfterTheReadersWrite(t *testing.T) {
	near, far := wires(t)
	k := newCork(&overWire{near, near}, false)
	k.start(func() {})

	piece := make([]byte, 64<<10)
	all := 0
	for { // fill the socket
		rest, err := k.try.write(net.Buffers{piece})
		if err != nil {
			t.Fatal(err)
		}
		all += len(piece)
		if len(rest) > 0 {
			all -= len(rest[0])
			break
		}
	}
	answered := make(chan error, 1)
	answer := bytes.Repeat([]byte("answer"), 100<<10) // more than acknowledgements make room for
	go func() {
		_, err := near.Write(answer)
		answered <- err
	}()
	for near.mu.TryLock() { // it has yet to begin
		near.mu.Unlock()
		runtime.Gosched()
	}

	p := bytes.Repeat([]byte("message"), refSize)
	if err := k.putMessages([][]byte{p}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if sent, err := k.flush(false); sent || err != nil {
			t.Fatal(sent, err)
		}
	}
	flushed := make(chan error, 1)
	go func() { flushed <- flush(k) }()
	got := make([]byte, all+len(answer)+10+len(p))
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatal(err)
	}
	if rest := got[all:]; !bytes.HasPrefix(rest, answer) || !bytes.HasSuffix(rest, p) {
		t.Error("out of order")
	}
	for _, done := range []chan error{answered, flushed} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
