package carrier

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
)

const (
	// refSize is the length from which on a write of the WebSocket library is
	// kept by reference and not copied. The library's own buffers are smaller,
	// so only the message itself, which outlives the flush, is ever kept.
	refSize = 16 << 10
	// maxControl bounds the bytes of control frames that wait to be written;
	// past it, pings are neither sent nor answered.
	maxControl = 4 << 10
)

// Opcodes of RFC 6455, 5.2, with the bit that says the frame is final.
const (
	finalClose = 0x88
	finalPing  = 0x89
)

// cork is the conn that the WebSocket library reads from and writes to. Until it
// is started it passes everything through, which is for the HTTP request and its
// answer. From then on Write only appends to memory: it never blocks, and flush
// sends what has come together with one system call.
//
// The library writes whole control frames with one call each, so another frame
// can go in between any two writes that do not belong to a message.
type cork struct {
	// Set at construction.
	net.Conn               // the wire or TLS
	wire     *wire         // nil if Conn is TLS over a foreign conn
	socket   net.Conn      // the innermost conn, for closing it at once
	client   bool          // frames are to be masked
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

	frame sync.Mutex // held while a message is written to memory, and while a frame is put between

	mu        sync.Mutex // guards the following
	started   bool
	first     []byte // the first bytes that were read; appended by the reader only
	dead      bool   // nothing can be written any more
	inMessage bool   // a message is being written, whose writer will flush
	filling   batch  // what waits to be written
	control   int    // bytes of filling that belong to control frames

	// flushing holds a token while somebody writes to Conn; it guards leaving. A
	// channel and not a mutex, because one may wait for it as long as for a peer.
	flushing chan struct{}
	leaving  batch // what is being written
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

// Read waits until a client has spoken: to http.Transport, a server that speaks
// first is an occasion for the standard logger.
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

// Write keeps p, to be sent by the next flush. Once started it never blocks. A p
// of refSize or more is kept by reference until then.
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
	k.filling.add(p)
	if !k.inMessage {
		k.controlAdded(len(p), false)
	}
	return len(p), nil
}

// controlAdded has a control frame sent that was appended to filling. mu is held.
func (k *cork) controlAdded(n int, asks bool) {
	k.control += n
	k.vitals.wrote(asks)
	select {
	case k.kick <- struct{}{}:
	default: // the flusher has yet to come and will find these bytes too
	}
}

// beginMessage tells that what is written from here to endMessage is a message,
// and that a flush follows: nothing else has to send it.
func (k *cork) beginMessage() {
	k.frame.Lock()
	k.mu.Lock()
	k.inMessage = true
	k.mu.Unlock()
}

func (k *cork) endMessage() {
	k.mu.Lock()
	k.inMessage = false
	k.mu.Unlock()
	k.frame.Unlock()
	k.vitals.wrote(true)
}

// put writes a control frame without the WebSocket library, whose Ping waits for
// the pong and whose Close for the peer. It does not block.
func (k *cork) put(opcode byte, payload []byte) {
	var mask [4]byte
	frame := make([]byte, 0, 2+len(mask)+len(payload))
	frame = append(frame, opcode, byte(len(payload)))
	if k.client {
		rand.Read(mask[:])
		frame[1] |= 0x80
		frame = append(frame, mask[:]...)
	}
	for i, b := range payload {
		frame = append(frame, b^mask[i%len(mask)])
	}

	k.frame.Lock()
	defer k.frame.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return
	}
	k.filling.add(frame)
	k.controlAdded(len(frame), opcode == finalPing)
}

// putClose writes a close frame (RFC 6455, 5.5.1).
func (k *cork) putClose(code uint16, reason string) {
	k.put(finalClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// congested reports whether so many bytes of control frames wait to be written
// that none should be added.
func (k *cork) congested() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.control > maxControl
}

// flush sends all that was written before the call, and returns when it was
// handed to the system: no byte kept by reference is used after that. It may
// block. After an error the cork is dead.
func (k *cork) flush() error {
	k.flushing <- struct{}{}
	defer func() { <-k.flushing }()
	k.mu.Lock()
	if k.dead {
		k.mu.Unlock()
		return net.ErrClosed
	}
	k.filling, k.leaving = k.leaving, k.filling
	k.control = 0
	k.mu.Unlock()

	err := k.send(&k.leaving)
	k.leaving.reset()
	if err != nil {
		k.mu.Lock()
		k.kill()
		k.mu.Unlock()
	}
	return err
}

func (k *cork) send(b *batch) error {
	if b.empty() {
		return nil
	}
	switch {
	case k.wire == nil:
		return b.writeTo(k.Conn)
	case k.wire == k.Conn: // no TLS: past the wire, for writev
		return b.writeTo(k.wire.Conn)
	}
	k.wire.hold()
	err := b.writeTo(k.Conn)
	if released := k.wire.release(); err == nil {
		err = released
	}
	return err
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

// kill makes the cork dead. mu is held.
func (k *cork) kill() {
	k.dead = true
	k.filling = batch{}
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
		k.wire.uncounted()
	}
	k.socket.Close()
	k.hasSpoken()
}

// batch is bytes to be written at once: those of buf, with others between.
type batch struct {
	buf  []byte
	refs []ref
	vec  net.Buffers // built by writeTo; reused
	rest net.Buffers // what net.Buffers consumes, here so that it is not allocated
}

// ref stands before the byte at of the buf.
type ref struct {
	at int
	p  []byte
}

func (b *batch) empty() bool { return len(b.buf) == 0 && len(b.refs) == 0 }

func (b *batch) add(p []byte) {
	if len(p) >= refSize {
		b.refs = append(b.refs, ref{len(b.buf), p})
		return
	}
	b.buf = append(b.buf, p...)
}

func (b *batch) reset() {
	b.buf = reusable(b.buf)
	clear(b.refs)
	b.refs = b.refs[:0]
	clear(b.vec)
	b.vec, b.rest = b.vec[:0], nil
}

// writeTo writes everything, with one writev if w is a *net.TCPConn.
func (b *batch) writeTo(w net.Conn) error {
	if len(b.refs) == 0 {
		_, err := w.Write(b.buf)
		return err
	}
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
	_, err := b.rest.WriteTo(w)
	return err
}
