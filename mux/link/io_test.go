package link

import (
	"io"
	"sync"
)

// The tests read and write links as if they were connections.

// readers are what a link received and a test has not read yet.
var readers sync.Map // *Link to *reader

type reader struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte
	ended   bool
	roomed  func()
}

// handle has l keep what it receives for Read, and call roomed, if it is not nil,
// when it has room.
func handle(l *Link, roomed func()) {
	r := &reader{roomed: roomed}
	r.changed.L = &r.mu
	readers.Store(l, r)
	wake := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	}
	l.Handle(func(p []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.data = append(r.data, p...)
		r.changed.Broadcast()
	}, func() {
		wake()
		if r.roomed != nil {
			r.roomed()
		}
	})
	go func() {
		<-l.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = true
		r.changed.Broadcast()
	}()
}

func reading(l *Link) *reader {
	r, ok := readers.Load(l)
	if !ok {
		panic("link without a handler")
	}
	return r.(*reader)
}

// Read waits for received bytes.
func (l *Link) Read(p []byte) (int, error) {
	r := reading(l)
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.data) == 0 {
		if r.ended {
			return 0, l.Err()
		}
		r.changed.Wait()
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// writePiece is how much Write appends at once.
const writePiece = 64 << 10

// Write appends p in pieces and waits while the link is full.
func (l *Link) Write(p []byte) (n int, err error) {
	for ; n < len(p) && err == nil; n += min(writePiece, len(p)-n) {
		err = l.writeFrame(p[n:min(n+writePiece, len(p))])
	}
	return min(n, len(p)), err
}

// writeFrame appends v when there is room.
func (l *Link) writeFrame(v ...[]byte) error {
	r := reading(l)
	r.mu.Lock()
	for l.Err() == nil && l.Full() {
		r.changed.Wait()
	}
	r.mu.Unlock()
	return l.post(v)
}

// post appends v and sends it.
func (l *Link) post(v [][]byte) error {
	if err := l.Append(v); err != nil {
		return err
	}
	l.Send()
	return nil
}

var _ io.ReadWriter = (*Link)(nil)
