package carrier

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"

	"culvert/mux/carrier/seal"
)

const (
	// refSize is the length from which on a message is kept by reference, and
	// masked where it is, instead of copied.
	refSize = 16 << 10
	// maxControl bounds the bytes of control frames that wait to be written;
	// past it, pings are not answered.
	maxControl = 4 << 10
)

// Opcodes of RFC 6455, 5.2, with the bit that says the frame is final.
const (
	finalBinary = 0x82
	finalClose  = 0x88
	finalPing   = 0x89
)

// cork is the conn that the WebSocket library reads from and writes to. Until it
// is started it passes everything through, which is for the HTTP request and its
// answer. From then on Write only appends to memory: it never blocks, and flush
// sends what has come together with one system call.
//
// Messages are framed here and masked in place: the library masks through a
// buffer of 4 KiB, which costs two more copies of each byte. What the library
// writes itself are whole control frames with one call each, so frames never mix.
type cork struct {
	// Set at construction.
	net.Conn               // the wire or TLS
	wire     *wire         // nil if Conn is TLS over a foreign conn
	socket   net.Conn      // the innermost conn, for closing it at once
	client   bool          // frames are to be masked
	seal     *seal.Cipher  // of messages that are written; nil: they are not sealed. Used with mu held
	vitals   *vitals       // the wire's, if there is one
	noteRead bool          // there is none: reads are noted here
	kick     chan struct{} // control frames wait to be flushed
	onClose  func()        // what a Close by the library does once started
	spoken   chan struct{} // closed by the first Write, or an end
	speak    sync.Once     // closes spoken

	// Owned by whoever reads.
	prefix []byte // bytes to be read before those of Conn

	// budget is how many more bytes the message that is being read may take on
	// the wire; below 0 it has taken too many. noBudget between messages.
	budget  atomic.Int64
	readErr atomic.Pointer[error] // the first error of a Read

	mu      sync.Mutex // guards the following
	started bool
	first   []byte // the first bytes that were read; appended by the reader only
	dead    bool   // nothing can be written any more
	filling batch  // what waits to be written
	control int    // bytes of filling that belong to control frames
	pinging bool   // a ping of ping is in filling
	closing bool   // a close frame was written: no other one follows, and no ping or pong

	// flushing holds a token while somebody writes to Conn; it guards leaving. A
	// channel and not a mutex, because one may wait for it as long as for a peer.
	flushing chan struct{}
	leaving  batch     // what is being written
	try      *writeTry // nil: the socket cannot be written to without blocking
}

const maxFirst = 16

const noBudget = int64(1) << 62

// newCork puts a cork on conn, which is a *wire or TLS.
func newCork(conn net.Conn, client bool) *cork {
	k := &cork{
		Conn:   conn,
		wire:   findWire(conn),
		socket: socketOf(conn),
		client: client,
		kick:   make(chan struct{}, 1),

		spoken:   make(chan struct{}),
		flushing: make(chan struct{}, 1),
	}
	if k.wire != nil {
		k.vitals = k.wire.vitals
		k.try = newWriteTry(k.wire.Conn)
	} else {
		k.vitals, k.noteRead = newVitals(), true
	}
	k.budget.Store(noBudget)
	return k
}

// start ends the passing through. From here on onClose is called when the
// WebSocket library closes the conn.
func (k *cork) start(onClose func()) {
	k.onClose = onClose
	k.mu.Lock()
	k.started = true
	k.mu.Unlock()
}

// Read waits until a client has spoken: http.Transport tells the standard logger about
// a server that speaks first. It fails if the server's first bytes do not begin an
// answer of HTTP/1: http.Transport would wait for the end of a line.
func (k *cork) Read(p []byte) (int, error) {
	if k.client {
		<-k.spoken
	}
	if len(k.prefix) > 0 {
		n := copy(p, k.prefix)
		k.prefix = k.prefix[n:]
		return n, nil
	}
	if k.noteRead {
		k.vitals.readBegins()
	}
	n, err := k.Conn.Read(p)
	if k.noteRead {
		k.vitals.readEnds(n)
	}
	if room := maxFirst - len(k.first); room > 0 && n > 0 {
		k.mu.Lock()
		k.first = append(k.first, p[:min(n, room)]...)
		k.mu.Unlock()
		if k.client && !beginsHTTP(k.first) {
			n, err = 0, notFrontHTTP("") // upgradeFailed says what it was
		}
	}
	if k.budget.Add(int64(-n)) < 0 {
		err = ErrMessageTooLarge
	}
	if err != nil {
		first := err // err itself would be allocated by every Read
		k.readErr.CompareAndSwap(nil, &first)
	}
	return n, err
}

func (k *cork) hasSpoken() { k.speak.Do(func() { close(k.spoken) }) }

// answered returns the first bytes that were read, 16 at most.
func (k *cork) answered() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.first
}

// Write keeps p, a control frame of the WebSocket library, to be sent by the next
// flush. Once started it never blocks.
func (k *cork) Write(p []byte) (int, error) {
	k.mu.Lock()
	if !k.started {
		k.mu.Unlock()
		defer k.hasSpoken()
		return k.Conn.Write(p)
	}
	defer k.mu.Unlock()
	if k.dead {
		return 0, net.ErrClosed
	}
	if k.closing {
		return len(p), nil
	}
	k.closing = len(p) > 0 && p[0] == finalClose
	k.filling.buf = append(k.filling.buf, p...)
	k.controlAdded(len(p))
	k.vitals.wrote()
	return len(p), nil
}

// controlAdded has a control frame sent that was appended to filling. mu is held.
func (k *cork) controlAdded(n int) {
	k.control += n
	select {
	case k.kick <- struct{}{}:
	default: // the flusher has yet to come and will find these bytes too
	}
}

// putMessages writes each of v as one binary message, to be sent by the flush
// that its writer must call; until that has returned, v may be used. It does not
// block.
func (k *cork) putMessages(v [][]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return net.ErrClosed
	}
	for _, p := range v {
		k.appendFrame(finalBinary, p)
	}
	k.vitals.wroteMessage()
	return nil
}

// ping writes a ping without the WebSocket library, whose Ping waits for the pong.
// If a ping already waits to be sent, that one is enough: so pings need little
// memory however long nothing can be sent. ping does not block.
func (k *cork) ping() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead || k.closing {
		return
	}
	if !k.pinging {
		k.pinging = true
		k.appendFrame(finalPing, nil)
		k.controlAdded(0)
	}
	k.vitals.wrotePing()
}

// appendFrame appends a frame (RFC 6455, 5.2), masked if this is the client's
// end. mu is held.
func (k *cork) appendFrame(opcode byte, payload []byte) {
	masked := byte(0)
	if k.client {
		masked = 0x80
	}
	sealed := k.seal != nil && opcode == finalBinary
	n := len(payload)
	if sealed {
		k.filling.share()
		n += seal.Overhead
	}
	buf := append(k.filling.buf, opcode)
	switch {
	case n < 126:
		buf = append(buf, masked|byte(n))
	case n < 1<<16:
		buf = binary.BigEndian.AppendUint16(append(buf, masked|126), uint16(n))
	default:
		buf = binary.BigEndian.AppendUint64(append(buf, masked|127), uint64(n))
	}
	var key uint32
	if k.client {
		buf = append(buf, 0, 0, 0, 0)
		rand.Read(buf[len(buf)-4:])
		key = binary.LittleEndian.Uint32(buf[len(buf)-4:])
	}
	switch {
	case sealed: // a copy, since what is sealed where it is must be opened again
		buf = k.seal.Seal(buf, payload)
		mask(buf[len(buf)-n:], key)
	case len(payload) >= refSize:
		mask(payload, key)
		k.filling.refs = append(k.filling.refs, ref{len(buf), payload, key})
	default:
		buf = append(buf, payload...)
		mask(buf[len(buf)-len(payload):], key)
	}
	k.filling.buf = buf
}

// mask masks p with key, or takes that mask off again (RFC 6455, 5.3).
func mask(p []byte, key uint32) {
	if key == 0 {
		return
	}
	key64 := uint64(key)<<32 | uint64(key)
	for len(p) >= 32 {
		binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)^key64)
		binary.LittleEndian.PutUint64(p[8:], binary.LittleEndian.Uint64(p[8:])^key64)
		binary.LittleEndian.PutUint64(p[16:], binary.LittleEndian.Uint64(p[16:])^key64)
		binary.LittleEndian.PutUint64(p[24:], binary.LittleEndian.Uint64(p[24:])^key64)
		p = p[32:]
	}
	for i := range p {
		p[i] ^= byte(key >> (8 * (i % 4)))
	}
}

// putClose writes a close frame (RFC 6455, 5.5.1) without the WebSocket library,
// whose Close waits for the peer, unless there is one already. It does not block.
func (k *cork) putClose(code uint16, reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead || k.closing {
		return
	}
	k.closing = true
	payload := append(binary.BigEndian.AppendUint16(nil, code), reason...)
	k.appendFrame(finalClose, payload)
	k.controlAdded(len(payload))
	k.vitals.wrote()
}

// saysGoodbye reports whether a close frame was written.
func (k *cork) saysGoodbye() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.closing
}

// congested reports whether so many bytes of control frames wait to be written
// that no pong should be added.
func (k *cork) congested() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.control > maxControl
}

// flush sends all that was written before the call and says whether it has: if it
// may not wait, only as far as the system takes it at once, and not if somebody
// else is sending. When it has sent all, no byte that was kept by reference is
// used any more, and each is what it was. After an error the cork is dead.
func (k *cork) flush(wait bool) (sent bool, err error) {
	if wait {
		k.flushing <- struct{}{}
	} else {
		select {
		case k.flushing <- struct{}{}:
		default:
			return false, nil
		}
	}
	defer func() { <-k.flushing }()
	for rest := !k.leaving.empty(); ; rest = false { // of the last time
		k.mu.Lock()
		if k.dead {
			k.mu.Unlock()
			return false, net.ErrClosed
		}
		if !rest {
			k.filling, k.leaving = k.leaving, k.filling
			k.control, k.pinging = 0, false
		}
		k.mu.Unlock()

		sent, err := k.send(wait)
		if err != nil {
			k.mu.Lock()
			k.kill()
			k.mu.Unlock()
			return false, err
		}
		if !sent || !rest {
			return sent, nil
		}
	}
}

// send sends what is leaving.
func (k *cork) send(wait bool) (sent bool, err error) {
	b := &k.leaving
	switch {
	case k.wire == k.Conn: // no TLS: past the wire, for writev
		sent, err = b.writeTo(k.wire.Conn, k.try, wait)
	case k.wire == nil:
		sent, err = b.writeTo(k.Conn, nil, wait)
	default:
		if !b.empty() { // encrypt it
			if !k.wire.hold(wait) {
				return false, nil
			}
			_, err = b.writeTo(k.Conn, nil, true)
			k.wire.unhold()
			b.reset()
		}
		if err == nil {
			sent, err = k.wire.flush(k.try, wait)
		}
	}
	if sent {
		k.mu.Lock()
		b.reset()
		if k.filling.empty() { // the buffer that is warm in the caches is the better one
			k.filling, k.leaving = k.leaving, k.filling
		}
		k.mu.Unlock()
	}
	return sent, err
}

// drop forgets what waits to be written and refuses what follows. When it has
// returned, nothing that was kept by reference is used any more. It waits for a
// flush in progress.
func (k *cork) drop() {
	k.flushing <- struct{}{}
	defer func() { <-k.flushing }()
	k.mu.Lock()
	k.kill()
	k.mu.Unlock()
}

// kill makes the cork dead. mu and the token of flushing are held.
func (k *cork) kill() {
	k.dead = true
	k.filling.reset()
	k.leaving.reset()
	k.filling.buf, k.leaving.buf = nil, nil
}

// Close is the WebSocket library's: what it has written last must still be sent.
func (k *cork) Close() error {
	k.mu.Lock()
	started := k.started
	k.mu.Unlock()
	if started {
		k.onClose()
		return nil
	}
	defer k.hasSpoken()
	return k.Conn.Close()
}

// closeSocket ends everything that reads, writes or flushes. TLS is told
// nothing, because that could block.
func (k *cork) closeSocket() {
	if k.wire != nil {
		k.wire.counted.ends()
	}
	k.socket.Close()
	k.hasSpoken()
}

// batch is bytes to be written at once: those of buf, with others between.
type batch struct {
	buf  []byte
	refs []ref
	vec  net.Buffers // all of it, built by writeTo; reused
	rest net.Buffers // what of vec is left to be written; nil before the first try

	shared *[]byte // from heldPool, buf's memory as long as sealed messages are in it; nil: its own
	own    []byte  // buf's own memory meanwhile
}

// share has buf use memory that corks share: sealed messages fill a lot, and of a
// thousand connections most are idle.
func (b *batch) share() {
	if b.shared == nil {
		b.shared, b.own = heldPool.Get().(*[]byte), b.buf
		b.buf = append((*b.shared)[:0], b.own...)
	}
}

// ref stands before the byte at of the buf.
type ref struct {
	at  int
	p   []byte
	key uint32 // p is masked with it
}

func (b *batch) empty() bool { return len(b.buf) == 0 && len(b.refs) == 0 }

// reset empties b and gives back what it refers to as it was.
func (b *batch) reset() {
	if b.shared != nil {
		*b.shared = reusable(b.buf)
		heldPool.Put(b.shared)
		b.shared, b.buf, b.own = nil, b.own, nil
	}
	b.buf = reusable(b.buf)
	for _, r := range b.refs {
		mask(r.p, r.key)
	}
	clear(b.refs)
	b.refs = b.refs[:0]
	clear(b.vec)
	b.vec, b.rest = b.vec[:0], nil
}

// writeTo writes what is left of b, to w if it may wait and with a try
// otherwise, and says whether that was everything.
func (b *batch) writeTo(w net.Conn, a *writeTry, wait bool) (sent bool, err error) {
	if b.empty() {
		return true, nil
	}
	if b.rest == nil {
		done := 0
		for _, r := range b.refs {
			if r.at > done {
				b.vec = append(b.vec, b.buf[done:r.at])
				done = r.at
			}
			b.vec = append(b.vec, r.p)
		}
		if len(b.buf) > done {
			b.vec = append(b.vec, b.buf[done:])
		}
		b.rest = b.vec
	}
	if a != nil {
		if b.rest, err = a.write(b.rest); err != nil || len(b.rest) == 0 {
			return err == nil, err
		}
	}
	switch {
	case !wait:
		return false, nil
	case len(b.rest) == 1:
		_, err = w.Write(b.rest[0])
	default:
		_, err = b.rest.WriteTo(w) // one writev if w is a *net.TCPConn
	}
	return err == nil, err
}
