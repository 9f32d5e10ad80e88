package carrier

import (
	"net"
	"sync"
	"sync/atomic"
)

// wire is the conn next to the socket, below TLS. It notes in vitals every byte
// that arrives, also those of a TLS record that is not complete yet, and it
// gathers what crypto/tls writes one record at a time.
type wire struct {
	net.Conn // the socket

	vitals *vitals

	counted *counted // by the listener; nil if it does not

	idle atomic.Pointer[idle] // nil: there is no telling

	mu      sync.Mutex // guards the following, and is held while gathered bytes are written
	holding bool
	held    *[]byte // from heldPool; nil when Write passes through
	written int     // bytes of held
	vec     net.Buffers
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
	n, err := w.read(p)
	w.vitals.readEnds(n)
	return n, err
}

func (w *wire) read(p []byte) (int, error) {
	if i := w.idle.Load(); i != nil {
		if n, err, ready := i.try(p); ready {
			return n, err
		}
		i.tell()
	}
	return w.Conn.Read(p)
}

// idle is what Conn.OnIdle needs.
type idle struct {
	tell func()
	try  func(p []byte) (n int, err error, ready bool) // reads what has arrived
}

func (w *wire) onIdle(f func()) {
	if pipe, ok := w.Conn.(tryReader); ok {
		w.idle.Store(&idle{f, pipe.tryRead})
	} else if try := newReadTry(w.Conn); try != nil {
		w.idle.Store(&idle{f, try.read})
	}
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holding || w.held != nil { // not before what waits already
		if w.held == nil {
			w.held = heldPool.Get().(*[]byte)
		}
		*w.held = append(*w.held, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// hold makes Write gather, until unhold. If it may not wait it fails while a Write
// waits for the peer: crypto/tls writes when it reads, too.
func (w *wire) hold(wait bool) bool {
	if !w.lock(wait) {
		return false
	}
	w.holding = true
	w.mu.Unlock()
	return true
}

func (w *wire) unhold() {
	w.mu.Lock()
	w.holding = false
	w.mu.Unlock()
}

func (w *wire) lock(wait bool) bool {
	if !wait {
		return w.mu.TryLock()
	}
	w.mu.Lock()
	return true
}

// flush writes what was gathered, at once, and says whether it has. It may block
// only if it is to wait.
func (w *wire) flush(a *writeTry, wait bool) (sent bool, err error) {
	if !w.lock(wait) {
		return false, nil
	}
	defer w.mu.Unlock()
	if w.held == nil {
		return true, nil
	}
	rest := (*w.held)[w.written:]
	if a != nil {
		w.vec = append(w.vec[:0], rest)
		v, err := a.write(w.vec)
		if err != nil {
			return false, err
		}
		rest = nil
		if len(v) > 0 {
			rest = v[0]
		}
		w.written = len(*w.held) - len(rest)
	}
	if len(rest) > 0 {
		if !wait {
			return false, nil
		}
		if _, err := w.Conn.Write(rest); err != nil {
			return false, err
		}
	}
	*w.held = reusable(*w.held)
	heldPool.Put(w.held)
	w.held, w.written = nil, 0
	return true, nil
}

func (w *wire) Close() error {
	w.counted.ends()
	return w.Conn.Close()
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
