package carrier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"

	"culvert/mux/carrier/seal"
)

// lastWords bounds the time that a Conn which ends politely, or for a reason the
// peer should be told, takes for it.
const lastWords = time.Second

// Close codes that a Conn sends (RFC 6455, 7.4.1). The WebSocket library sends
// closeProtocol too, for frames that break the protocol.
const (
	closeNormal      = 1000 // Close
	closeProtocol    = 1002
	closeUnsupported = 1003
	closePolicy      = 1008 // Dismiss
	closeTooBig      = 1009
)

// Conn is one carrier. It is made by [Dialer.Dial] and by [Handler], and it must
// be ended with Close or Abort.
//
// One goroutine may read while another writes; all other methods may be called
// by anybody at any time. Somebody has to be in ReadMessage most of the time:
// heartbeats are answered and noticed there.
type Conn struct {
	// Set at construction.
	ws     *websocket.Conn
	cork   *cork
	opt    Options
	secure bool
	remote string
	proxy  string // host:port, "" for none
	mode   Mode
	seal   *seal.Cipher // opens what is read, owned by the reader; nil: it is not sealed

	// spoke, if not nil, is called with the first message. ended, if not nil, is called
	// once when the Conn is dead; heard reports whether anything came from the peer
	// after the answer to the upgrade.
	spoke func()
	ended func(heard bool)

	heartbeat atomic.Int64 // see SetHeartbeat

	reading sync.Mutex // held by who reads from the connection

	// Owned by the reader.
	pongs bucket
	next  io.Reader // of the message that has begun; nil between messages
	spare [1]byte   // where a byte too much goes

	cause    atomic.Pointer[error] // what the Conn died of; the first one counts
	writeErr atomic.Pointer[error] // the same, if the reader has nothing better to say
	heard    atomic.Bool           // a message was read
	givenUp  atomic.Bool           // by Abort, and not dead before

	finishOnce sync.Once
	done       chan struct{} // closed when the Conn is dead
	upgraded   int64         // when, by the vitals' clock
	cut        *time.Timer   // closes the socket when lastWords are over; set before done is closed

	closeOnce sync.Once
	wg        sync.WaitGroup // flush loop and pulse
}

// newConn makes a Conn that has yet to be started. k's onClose and the pings'
// callback of ws are to be those of the Conn.
func newConn(k *cork, opt Options, secure bool) *Conn {
	mode := ModeWebSocket
	if _, ok := k.socket.(tryReader); ok {
		mode = ModeHTTP
	}
	c := &Conn{
		cork:   k,
		mode:   mode,
		opt:    opt.withDefaults(),
		secure: secure,
		remote: k.RemoteAddr().String(),
		pongs:  bucket{tokens: pongBurst},
		done:   make(chan struct{}),
	}
	c.SetHeartbeat(c.opt.Heartbeat)
	return c
}

func (c *Conn) start(ws *websocket.Conn) {
	c.ws = ws
	ws.SetReadLimit(int64(c.largest()))
	c.cork.vitals.wrote() // the upgrade
	c.upgraded = c.cork.vitals.now()
	c.cork.start(c.finish)
	c.wg.Go(func() {
		c.flushLoop()
		// It gives its buffers back, and is freed. Otherwise it never would be: it has a
		// finalizer and refers to itself. Who reads may yet find out why the Conn is dead.
		c.reading.Lock()
		defer c.reading.Unlock()
		_ = ws.CloseNow()
	})
	c.wg.Go(c.pulse)
}

// sealWith seals what is written and opens what is read. It is called before start.
func (c *Conn) sealWith(in, out *seal.Cipher) {
	c.seal, c.cork.seal = in, out
	c.secure = true
}

// largest is the length of the largest message that the WebSocket may deliver.
func (c *Conn) largest() int {
	if c.seal != nil {
		return c.opt.MaxMessage + SealOverhead
	}
	return c.opt.MaxMessage
}

// ReadMessage reads one whole message into p and returns its length. A message
// longer than p or than Options.MaxMessage is [ErrMessageTooLarge]; so p should
// hold MaxMessage bytes, and SealOverhead more if the Conn may be sealed. Only one
// goroutine may read at a time.
//
// After any error the Conn is dead and every later call returns an error with
// the same cause: a [*CloseError] if the peer said goodbye, io.EOF or another
// error of the network if the connection was cut, ErrHeartbeat, ErrProtocol, ErrSeal,
// or what was given to Abort; net.ErrClosed after Close.
func (c *Conn) ReadMessage(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if err := c.await(); err != nil {
		return 0, err
	}
	r := c.next
	c.next = nil

	// Fragments may be as small as a byte, or empty, and each has a header.
	c.cork.budget.Store(int64(4*c.opt.MaxMessage + 64<<10))
	n := 0
	for {
		into := p[n:]
		if len(into) == 0 {
			into = c.spare[:]
		}
		m, err := r.Read(into)
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, c.readFailed(err)
		}
		if n > len(p) || n > c.largest() {
			c.cork.putClose(closeTooBig, "message too large")
			return 0, c.tellThenDie(ErrMessageTooLarge)
		}
	}
	c.cork.budget.Store(noBudget)
	if c.dead() { // meanwhile
		return 0, c.died("read")
	}
	if !c.heard.Load() {
		c.heard.Store(true)
		if c.spoke != nil {
			c.spoke()
		}
	}
	if c.seal == nil {
		return n, nil
	}
	plain, err := c.seal.Open(p[:n])
	if err != nil {
		c.cork.putClose(closeProtocol, "")
		return 0, c.tellThenDie(err)
	}
	return len(plain), nil
}

// AwaitMessage waits until a message begins, which ReadMessage then reads: so p need not
// be there while nothing comes. It has the errors of ReadMessage, and is for the same
// goroutine.
func (c *Conn) AwaitMessage() error {
	c.reading.Lock()
	defer c.reading.Unlock()
	return c.await()
}

// await is AwaitMessage with reading held.
func (c *Conn) await() error {
	if c.dead() { // the WebSocket library would read on after some errors
		return c.died("read")
	}
	if c.next != nil {
		return nil
	}
	typ, r, err := c.ws.Reader(context.Background())
	if err != nil {
		return c.readFailed(err)
	}
	if typ != websocket.MessageBinary {
		c.cork.putClose(closeUnsupported, "binary messages only")
		return c.tellThenDie(fmt.Errorf("%w: text message", ErrProtocol))
	}
	c.next = r
	return nil
}

// OnIdle has ReadMessage and AwaitMessage call f when nothing has arrived yet that they
// could read, as far as the system tells without blocking: on Linux and macOS, over TCP.
// f must not block. OnIdle is called before either.
func (c *Conn) OnIdle(f func()) {
	if w := c.cork.wire; w != nil {
		w.onIdle(f)
	}
}

// WriteMessages sends each of v as one message, in order, with one system call
// as far as the system takes them. It does not block: it says whether everything
// was sent, and if not, Flush must be called and sends the rest. Until one of the
// two has said so or has failed, v belongs to the Conn, which changes it meanwhile;
// no two of v may overlap. If a message has
// more than Options.MaxMessage bytes, all are refused with [ErrMessageTooLarge]
// and nothing happens; after any other error the Conn is dead, as with
// ReadMessage. Only one goroutine may write at a time.
func (c *Conn) WriteMessages(v ...[]byte) (sent bool, err error) {
	for _, p := range v {
		if len(p) > c.opt.MaxMessage {
			return false, fmt.Errorf("carrier: write: %w: %d bytes", ErrMessageTooLarge, len(p))
		}
	}
	if c.dead() {
		return false, c.died("write")
	}
	err = c.cork.putMessages(v)
	if err == nil {
		sent, err = c.cork.flush(false)
	}
	return sent, c.written(err)
}

// Flush sends what WriteMessages could not send at once. It may block while the
// peer does not read, until the Conn ends.
func (c *Conn) Flush() error {
	_, err := c.cork.flush(true)
	return c.written(err)
}

func (c *Conn) written(err error) error {
	if err == nil {
		return nil
	}
	c.writeFailed(err)
	c.cork.drop() // messages may be in it
	return c.died("write")
}

// Close ends the Conn politely: it sends a WebSocket close frame with code 1000
// and reason, of which 123 bytes at most are sent, waits for the peer's for at
// most a second and closes the socket. It unblocks whoever reads or writes and
// returns when the Conn's own goroutines have ended. It may be called again, by
// anybody and after Abort; the error is always nil.
func (c *Conn) Close(reason string) error {
	c.setCause(net.ErrClosed)
	c.closeOnce.Do(func() {
		if !c.dead() {
			// The library waits for the peer longer than we like.
			cut := time.AfterFunc(lastWords, c.cork.closeSocket)
			_ = c.ws.Close(closeNormal, c.publicReason(reason))
			cut.Stop()
			c.finish()
		}
		c.wg.Wait()
	})
	c.wg.Wait()
	return nil
}

// Abort ends the Conn at once, without a close frame: what was not sent yet is
// lost. Reads and writes return with an error that wraps cause (net.ErrClosed if
// nil), unless the Conn was dead before. If it was, and its peer is just being told why
// by a close frame, that goes on, for a second at most. Abort does not block and joins
// nothing; that is what a Close after it is for.
func (c *Conn) Abort(cause error) {
	if cause == nil {
		cause = net.ErrClosed
	}
	if c.dead() {
		if c.cork.saysGoodbye() {
			return
		}
	} else {
		c.givenUp.Store(true)
	}
	c.setCause(cause)
	// What waits in the system would otherwise be sent for many minutes, to a
	// peer that may be gone. After finish the flush loop may be the first to close.
	if tcp, ok := c.cork.socket.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	c.finish()
	c.cork.closeSocket()
}

// Dismiss ends the Conn because its peer may not use it any longer. It is Abort,
// except that the peer is told so by a close frame with code 1008 and reason, of
// which 123 bytes at most are sent. What the peer sends meanwhile is discarded. A peer
// that does not read, or goes on sending, delays the end of the socket by at most a
// second. Dismiss does not block.
func (c *Conn) Dismiss(cause error, reason string) {
	c.setCause(cause) // before the peer can answer the close frame
	c.cork.putClose(closePolicy, c.publicReason(reason))
	c.finish()
}

// publicReason is reason as a close frame may say it.
func (c *Conn) publicReason(reason string) string {
	if c.seal != nil { // close frames are not sealed
		return ""
	}
	return closeReason(reason)
}

// Done is closed when the Conn is dead.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Secure reports whether this end speaks TLS with whatever it is connected to, or is
// sealed.
func (c *Conn) Secure() bool { return c.secure }

// Sealed reports whether messages are sealed from one end to the other.
func (c *Conn) Sealed() bool { return c.seal != nil }

// Mode says what the Conn runs on: [ModeWebSocket], or [ModeHTTP] for an HTTP pipe.
func (c *Conn) Mode() Mode { return c.mode }

// RemoteAddr returns the address that the socket is connected to, which may be
// that of a proxy, if it is not one that a server trusts to say who is behind it; of
// an HTTP pipe, that of one of its connections.
func (c *Conn) RemoteAddr() string { return c.remote }

// Proxy returns the host and port of the forward proxy that the socket is
// connected to, "" if there is none.
func (c *Conn) Proxy() string { return c.proxy }

// Probe sends a ping and returns nil as soon as any byte is received after it.
// Otherwise it returns the error of ctx, or what the Conn died of. Somebody has
// to be in ReadMessage meanwhile.
func (c *Conn) Probe(ctx context.Context) error {
	next := c.cork.vitals.nextByte()
	c.cork.ping()
	select {
	case <-next:
		return nil
	case <-c.done:
		return c.died("probe")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// SetUnsentLimit bounds the bytes that the system takes ahead of what it has
// sent to the network (TCP_NOTSENT_LOWAT, on Linux and macOS; elsewhere and on
// other sockets than TCP's it does nothing). 0 or less is the system's default,
// which is megabytes. A low limit keeps interactive traffic from waiting behind
// bulk, at the price of more wake-ups.
func (c *Conn) SetUnsentLimit(n int) {
	setUnsentLimit(c.cork.socket, max(n, 0))
}

func (c *Conn) dead() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *Conn) setCause(err error) { c.cause.CompareAndSwap(nil, &err) }

// finish makes the Conn dead and leaves the rest to the flush loop, which has
// lastWords to send what waits and to close the socket. It does not block.
func (c *Conn) finish() {
	c.finishOnce.Do(func() {
		c.cork.vitals.ended.Store(c.cork.vitals.now())
		c.cut = time.AfterFunc(lastWords, c.cork.closeSocket)
		close(c.done)
		if cause := c.cause.Load(); c.ended != nil && (cause == nil || !errors.Is(*cause, net.ErrClosed)) {
			// A first message may have come together with the answer to the upgrade.
			c.ended(c.heard.Load() || c.cork.vitals.received.Load() > c.upgraded)
		}
	})
}

func (c *Conn) fail(err error) {
	c.setCause(err)
	c.finish()
}

// writeFailed ends the Conn after an error of a write. What the reader finds is
// the cause rather: a write fails because the peer has left, and the reader may
// know why.
func (c *Conn) writeFailed(err error) {
	if !errors.Is(err, net.ErrClosed) { // which is what a dead cork says
		c.writeErr.CompareAndSwap(nil, &err)
	}
	c.finish()
}

// tellThenDie ends the Conn for something that the peer did and has been sent a
// close frame about.
func (c *Conn) tellThenDie(err error) error {
	c.cork.putClose(closeProtocol, "") // unless one says it better
	c.fail(err)
	return c.died("read")
}

// readFailed ends the Conn after an error of the WebSocket library's reader.
func (c *Conn) readFailed(err error) error {
	readErr := c.cork.readErr.Load()
	ce, closed := errors.AsType[websocket.CloseError](err)
	switch {
	case closed:
		c.fail(&CloseError{Code: int(ce.Code), Reason: ce.Reason})
	case errors.Is(err, websocket.ErrMessageTooBig):
		return c.tellThenDie(ErrMessageTooLarge)
	case readErr != nil && errors.Is(*readErr, ErrMessageTooLarge):
		c.cork.putClose(closeTooBig, "message too large")
		return c.tellThenDie(fmt.Errorf("%w: too many fragments", ErrMessageTooLarge))
	case readErr != nil && !errors.Is(*readErr, net.ErrClosed):
		c.fail(*readErr)
		if !c.cork.saysGoodbye() { // else the flush loop sees to it, and may have ended this read
			c.cork.closeSocket()
		}
	case readErr != nil, errors.Is(err, net.ErrClosed): // this side has closed the socket, and knows why
		c.finish()
	default:
		return c.tellThenDie(fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	return c.died("read")
}

// died returns the error of an operation on a dead Conn.
func (c *Conn) died(op string) error {
	err := net.ErrClosed
	if cause := cmp.Or(c.cause.Load(), c.writeErr.Load()); cause != nil {
		err = *cause
	}
	return fmt.Errorf("carrier: %s: %w", op, err)
}

// flushLoop sends the frames that the WebSocket library and the pulse write, so
// that neither waits for the socket, and in the end closes it.
func (c *Conn) flushLoop() {
	for {
		select {
		case <-c.cork.kick:
			if _, err := c.cork.flush(true); err != nil {
				c.writeFailed(err)
			}
		case <-c.done:
			// c.cut ends everything here that blocks.
			_, err := c.cork.flush(true)
			if err == nil && c.cork.saysGoodbye() {
				c.linger()
			}
			c.cork.drop()
			c.cork.Conn.Close()
			c.cork.closeSocket()
			c.cut.Stop()
			return
		}
	}
}

// maxDrain is how many bytes a Conn that has sent a close frame reads at most until the
// peer's end: what was under way then, with the largest buffers that systems use.
const maxDrain = 16 << 20

// linger sees to it that the peer gets the close frame: closing a TCP socket with unread
// bytes resets the connection, and the peer may lose with that what it has not read
// (RFC 6455, 7.1.1). So this end says that nothing follows, and reads until the peer
// says so too. c.cut bounds the time.
func (c *Conn) linger() {
	type writeCloser interface{ CloseWrite() error }
	if tls, ok := c.cork.Conn.(writeCloser); ok {
		_ = tls.CloseWrite()
	}
	if half, ok := c.cork.socket.(writeCloser); ok {
		_ = half.CloseWrite()
	}
	_ = c.cork.Conn.SetReadDeadline(time.Now()) // for who is in ReadMessage
	c.reading.Lock()
	defer c.reading.Unlock()
	_ = c.cork.Conn.SetReadDeadline(time.Time{})
	_, _ = io.CopyN(io.Discard, c.cork.Conn, maxDrain)
}

// closeReason cuts reason to what fits into a close frame.
func closeReason(reason string) string {
	const limit = 123
	reason = strings.ToValidUTF8(reason, "?")
	if len(reason) <= limit {
		return reason
	}
	end := limit
	for !utf8.RuneStart(reason[end]) {
		end--
	}
	return reason[:end]
}
