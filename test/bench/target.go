//go:build linux

package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// The first byte of a connection says what the target does with it.
const (
	doSend    = 'd' // sends for ever
	doReceive = 'u' // receives, and counts for the number that follows in 8 bytes
	doEcho    = 'e'
	doNothing = 'n' // does not even read
)

const bufferSize = 256 << 10

// target is the server behind each contender.
type target struct {
	listener net.Listener
	running  sync.WaitGroup

	mu     sync.Mutex
	counts map[uint64]*atomic.Int64
	conns  map[net.Conn]struct{} // nil once closed
	held   chan struct{}         // closed by release
}

func listenTarget() (*target, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, counts: map[uint64]*atomic.Int64{}, conns: map[net.Conn]struct{}{}, held: make(chan struct{})}
	t.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.running.Go(func() { t.serve(conn) })
		}
	})
	return t, nil
}

func (t *target) addr() string { return t.listener.Addr().String() }

func (t *target) close() {
	_ = t.listener.Close()
	t.mu.Lock()
	for conn := range t.conns {
		_ = conn.Close()
	}
	t.conns = nil
	t.mu.Unlock()
	t.release()
	t.running.Wait()
}

// counter returns a new number for doReceive and where its bytes are counted.
func (t *target) counter() (uint64, *atomic.Int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, n := uint64(len(t.counts)), new(atomic.Int64)
	t.counts[id] = n
	return id, n
}

func (t *target) serve(conn net.Conn) {
	t.mu.Lock()
	if t.conns == nil {
		t.mu.Unlock()
		_ = conn.Close()
		return
	}
	t.conns[conn] = struct{}{}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.conns, conn)
		t.mu.Unlock()
		_ = conn.Close()
	}()
	var order [1]byte
	if _, err := io.ReadFull(conn, order[:]); err != nil {
		return
	}
	switch order[0] {
	case doSend:
		buf := make([]byte, bufferSize)
		for {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	case doReceive:
		var id uint64
		if binary.Read(conn, binary.BigEndian, &id) != nil {
			return
		}
		t.mu.Lock()
		n := t.counts[id]
		t.mu.Unlock()
		receive(conn, n)
	case doEcho:
		buf := make([]byte, 4<<10)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
	case doNothing:
		t.mu.Lock()
		held := t.held
		t.mu.Unlock()
		<-held
	}
}

// release ends the connections that ask for nothing.
func (t *target) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.held)
	t.held = make(chan struct{})
}

// receive reads conn to its end and counts.
func receive(conn net.Conn, n *atomic.Int64) {
	buf := make([]byte, bufferSize)
	for {
		k, err := conn.Read(buf)
		n.Add(int64(k))
		if err != nil {
			return
		}
	}
}
