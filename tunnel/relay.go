package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/mux"
)

// stream is what tunnel needs of a *mux.Stream, where each is described.
type stream interface {
	io.Writer
	Deliver(w mux.TryWriter, done func(n int64, err error))
	ID() uint64
	Header() mux.Header
	Accept() error
	Refuse(code mux.Code, reason string) error
	Reply(ctx context.Context) error
	CloseWrite() error
	Reset(code mux.Code, reason string)
	Close() error
	Context() context.Context
}

// littleRead is as much as a stream lets go before the bulk of others.
const littleRead = 2 << 10

// departure is how long after the end of a connection that never sent anything an
// open may go on: the user most likely left.
const departure = 2 * time.Second

// relay joins one connection to one stream until both directions have ended or
// either end was reset. A clean end of one direction closes that direction at
// the other side and nothing more. A reset of the connection resets the stream
// with a reason; a reset of the stream, or the loss of its session, resets the
// connection, because a clean end would make what was cut look complete.
type relay struct {
	conn   net.Conn
	stream stream
	// replied is closed once the peer has accepted the stream; nil where this
	// end is the one that accepts.
	replied  chan struct{}
	onReply  func() // called when the reply has come or will not; nil: nothing
	onServed func() // called when the connection has reached its target; nil: nothing
	sent     int64  // bytes from conn to stream; read after run
	received int64  // bytes from stream to conn; read after run
	ended    atomic.Int32
	inbound  sync.WaitGroup // what goes from stream to conn
}

// run relays, with no goroutine but the caller's as long as nothing moves, and
// closes both ends. On the opener's side it waits for the open reply until ctx
// ends, while what the connection sends already travels, and returns the reason
// of a failed open. A reset after that is not an error of run.
func (r *relay) run(ctx context.Context) error {
	boundSendBuffer(r.conn)
	aborted := make(chan struct{})
	stop := context.AfterFunc(r.stream.Context(), func() {
		defer close(aborted)
		var reset *mux.Error
		if errors.As(context.Cause(r.stream.Context()), &reset) {
			abort(r.conn) // also wakes a Write that the application lets wait
		}
	})
	var err error
	if r.replied == nil {
		r.receive()
	} else {
		r.inbound.Go(func() {
			if err = r.awaitReply(ctx); err == nil {
				if r.onServed != nil {
					r.onServed()
				}
				r.receive()
			}
			if r.onReply != nil {
				r.onReply()
			}
		})
	}
	r.outbound()
	r.inbound.Wait()
	if !stop() {
		<-aborted
	}
	r.conn.Close()
	r.stream.Close()
	return err
}

func (r *relay) awaitReply(ctx context.Context) error {
	err := r.stream.Reply(ctx)
	if err == nil {
		close(r.replied)
		return nil
	}
	var answer *mux.Error
	if !errors.As(err, &answer) {
		err = &mux.Error{Code: mux.TimedOut, Reason: "no reply to the open"}
		r.stream.Reset(mux.Cancelled, "no reply in time")
	}
	abort(r.conn)
	return err
}

// receive has the stream write to the connection from now on.
func (r *relay) receive() {
	r.inbound.Add(1)
	r.stream.Deliver(newSink(r.conn), r.delivered)
}

// delivered ends what receive began.
func (r *relay) delivered(n int64, err error) {
	defer r.inbound.Done()
	r.received = n
	if err == nil {
		err = closeWrite(r.conn)
		if err == nil {
			r.directionEnded()
			return
		}
	}
	// No-op if the stream's reset is what ended the copy.
	r.stream.Reset(mux.ResetByPeer, reason(err))
	abort(r.conn)
}

// roomy is a stream that says whether there is room for a write, and that writes what is
// read only then.
type roomy interface {
	Room() int
	WriteFrom(n int, read func(most int) []byte) (int, error)
}

// outbound copies from the connection to the stream. It reads when there is room for
// what it reads: in an outage thousands of connections may have something to send.
func (r *relay) outbound() {
	src := newSource(r.conn)
	to, ok := r.stream.(roomy)
	if ok {
		src.room = to.Room
	}
	fetch := src.readNow
	next := littleRead // how many bytes may come, by what came last
	for {
		chunk, err := src.read()
		var n int
		var werr error
		if errors.Is(err, errNoRoom) {
			n, werr = to.WriteFrom(next, fetch)
			err = nil
		} else if len(chunk) > 0 {
			n, werr = r.stream.Write(chunk)
		}
		src.release()
		if r.sent += int64(n); n > 0 {
			next = littleRead
			if n >= littleRead {
				next = largeChunk
			}
		}
		if werr != nil {
			abort(r.conn)
			return
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.lost(err)
			return
		}
	}
	if err := r.stream.CloseWrite(); err != nil {
		abort(r.conn)
		return
	}
	if !r.stillWanted() {
		r.stream.Reset(mux.Cancelled, "connection closed before the open reply")
		abort(r.conn)
		return
	}
	if r.directionEnded() {
		return
	}
	// The other direction goes on, and so may a reset.
	if err := src.awaitReset(); err != nil {
		r.lost(err)
	}
}

// lost deals with a connection whose peer reset it, or which was closed here.
func (r *relay) lost(err error) {
	if !errors.Is(err, net.ErrClosed) {
		code := mux.ResetByPeer
		if r.pending() {
			code = mux.Cancelled
		}
		r.stream.Reset(code, reason(err))
	}
	abort(r.conn)
}

// stillWanted waits, after the connection's end of file, for the open reply, so
// that the dial of a user who left without a word ends soon.
func (r *relay) stillWanted() bool {
	if !r.pending() {
		return true
	}
	var left <-chan time.Time
	if r.sent == 0 {
		t := time.NewTimer(departure)
		defer t.Stop()
		left = t.C
	}
	select {
	case <-r.replied:
		return true
	case <-left:
		return !r.pending()
	case <-r.stream.Context().Done():
		return true // reset already
	}
}

func (r *relay) pending() bool {
	if r.replied == nil {
		return false
	}
	select {
	case <-r.replied:
		return false
	default:
		return true
	}
}

// directionEnded counts a direction that ended cleanly. The second one closes
// the connection, and with that ends the wait for a reset.
func (r *relay) directionEnded() (both bool) {
	if r.ended.Add(1) < 2 {
		return false
	}
	r.conn.Close()
	return true
}

// localSendBuffer is how much the system takes for a peer on this machine before
// it has read, in bytes; Linux doubles it for its overheads. Left alone it takes
// megabytes, which no path has to be filled with: they fall out of the caches,
// which costs a third of the speed, and a peer that does not read holds them.
const localSendBuffer = 256 << 10

func boundSendBuffer(conn net.Conn) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	if peer, ok := c.RemoteAddr().(*net.TCPAddr); ok && peer.IP.IsLoopback() {
		_ = c.SetWriteBuffer(localSendBuffer) // without it things are slower
	}
}

func closeWrite(conn net.Conn) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// abort closes conn so that its peer sees a reset, not an end of file.
func abort(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = c.SetLinger(0) // on a connection that is gone it is not needed
	}
	conn.Close()
}

// reason is the peer's version of err: the system's words without addresses.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return "connection failed"
}

// rawConn returns the socket of conn, nil if it is not one of the system's own.
func rawConn(conn net.Conn) syscall.RawConn {
	// By type, not by interface: a wrapper that embeds a socket has bytes of
	// its own to give and promotes SyscallConn all the same.
	var raw syscall.RawConn
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, _ = c.SyscallConn()
	case *net.UnixConn:
		raw, _ = c.SyscallConn()
	}
	return raw
}
