package carrier

import (
	"net"
	"sync"
)

// wire is the conn next to the socket, below TLS. It notes in vitals every byte
// that arrives, also those of a TLS record that is not complete yet, and it
// gathers what crypto/tls writes one record at a time.
type wire struct {
	net.Conn // the socket

	vitals *vitals

	uncount func() // the listener's, idempotent; or nil

	mu   sync.Mutex // guards held, and is held while gathered bytes are written
	held *[]byte    // from heldPool; nil when Write passes through
}

// heldPool keeps the buffers of wires that write at the moment: of a thousand
// connections most are idle.
var heldPool = sync.Pool{New: func() any { return new([]byte) }}

func newWire(conn net.Conn) *wire {
	return &wire{Conn: conn, vitals: newVitals()}
}

// findWire returns the wire that conn is or is TLS over, or nil.
func findWire(conn net.Conn) *wire {
	for {
		if w, ok := conn.(*wire); ok {
			return w
		}
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = over.NetConn()
	}
}

// socketOf returns the innermost conn that can be found below conn.
func socketOf(conn net.Conn) net.Conn {
	for {
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = over.NetConn()
	}
}

// NetConn returns the socket, as tls.Conn's method of this name does.
func (w *wire) NetConn() net.Conn { return w.Conn }

func (w *wire) Read(p []byte) (int, error) {
	w.vitals.readBegins()
	n, err := w.Conn.Read(p)
	w.vitals.readEnds(n)
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil {
		*w.held = append(*w.held, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// hold makes Write gather, until release.
func (w *wire) hold() {
	w.mu.Lock()
	w.held = heldPool.Get().(*[]byte)
	w.mu.Unlock()
}

// release writes what was gathered, at once. It may block.
func (w *wire) release() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := w.held
	w.held = nil
	_, err := w.Conn.Write(*held)
	*held = reusable(*held)
	heldPool.Put(held)
	return err
}

func (w *wire) Close() error {
	w.uncounted()
	return w.Conn.Close()
}

// uncounted tells the listener, if it limits, that this connection is not one of
// those it counts any more. Idempotent.
func (w *wire) uncounted() {
	if w.uncount != nil {
		w.uncount()
	}
}

// maxReuse is the largest buffer that is kept for the next message.
const maxReuse = 512 << 10

// reusable returns buf emptied, or nothing if it has grown too large to be kept.
func reusable(buf []byte) []byte {
	if cap(buf) > maxReuse {
		return nil
	}
	return buf[:0]
}

var _ net.Conn = (*wire)(nil)
var _ net.Conn = (*cork)(nil)
