package link

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// attachment is a carrier while the link rides on it, with the two goroutines
// that use it.
type attachment struct {
	carrier  Carrier
	checksum bool
	lost     chan struct{} // closed when the link no longer rides on it
	err      error         // why, valid after lost
	since    time.Time
	first    *received     // what it delivered before it was attached; may be nil
	after    *attachment   // the one that is read to its end before; may be nil
	read     chan struct{} // closed when nothing is read from it any more
	closed   chan struct{} // closed when it was left and both ends have said so, or it has failed

	// Guarded by Link.mu.
	last     bool        // the peer is to be told that it is left
	end      uint64      // the offset at which its successor goes on
	patience *time.Timer // runs while it is left and nothing comes; nil at other times
	loops    int         // of its two goroutines still run
	progress bool        // carried bytes of the stream, either way
	bye      bool        // the last message was handed to it
	sending  bool        // somebody has filled batch and sends it
	blocked  bool        // the carrier has not taken all of it, and Flush is due

	batch batch // owned by who is sending
}

// terms are what a handshake settled about a carrier.
type terms struct {
	number       uint64 // of the handshake; a later one has a larger number
	peerReceived uint64 // bytes of our stream that the peer has
	maxMessage   int    // largest message the peer accepts
	checksum     bool
	beside       bool      // the client had a carrier when it dialled
	gentle       bool      // and both ends want to leave that at its end
	displaces    bool      // it was counted as one that ends a live carrier
	first        *received // what the carrier has delivered already; nil: nothing
}

// attach makes c the link's carrier. If it is to follow the present one gently,
// the link goes on with it where it is, and leaves the other. Otherwise it sends
// again what the peer lacks; the former carrier is aborted and its goroutines are
// joined first, so attach may block for as long as their carrier needs to notice.
// It says which of the two it did. On error c is aborted, and the present carrier
// goes on if it was c's handshake that was wrong.
func (l *Link) attach(c Carrier, t terms) (att *attachment, gently bool, err error) {
	l.attachMu.Lock()
	defer l.attachMu.Unlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	att = &attachment{
		carrier: c, checksum: t.checksum, since: time.Now(), first: t.first,
		lost: make(chan struct{}), read: make(chan struct{}), closed: make(chan struct{}),
	}
	att.batch.socketLimit = -1
	gently = t.gentle && l.att != nil && l.leaving == nil
	err = l.refusal(t, gently)
	switch {
	case err != nil:
	case gently:
		att.after = l.att
		l.leave(l.att)
	default:
		l.displace()
		l.attaching = true
		l.mu.Unlock()
		l.running.Wait()
		l.mu.Lock()
		l.attaching = false
		if err = l.err; err == nil {
			err = l.out.rewind(l.peerReceived(t.peerReceived, t.beside))
		}
		l.settledLocked() // the handshake may have acknowledged the rest
	}
	if err != nil {
		c.Abort(err)
		t.first.release()
		return nil, false, err
	}
	l.number = t.number
	l.att, l.started = att, true
	l.expiry.Stop()
	l.out.maxMessage = min(t.maxMessage, slabSize)
	l.ackDue = true // tells the peer what arrived since the handshake
	l.armCheck()
	att.loops = 2
	l.running.Go(func() { l.readLoop(att) })
	l.running.Go(func() { l.writeLoop(att) })
	return att, gently, nil
}

// refusal says why a carrier with these terms cannot be attached, before anything
// happens to the present one. Called with mu held.
func (l *Link) refusal(t terms, gently bool) error {
	switch {
	case l.err != nil:
		return l.err
	case l.saidBye():
		return ErrClosed
	case t.number < l.number:
		return ErrStale
	}
	if err := l.out.check(l.peerReceived(t.peerReceived, t.beside)); err != nil {
		return err
	}
	if l.att != nil && !gently && !t.displaces && !l.displacing.take(time.Now()) {
		return ErrBusy
	}
	return nil
}

// peerReceived is what the peer has of our stream, of which a handshake says that it
// had received bytes. A carrier beside may have brought it more since.
func (l *Link) peerReceived(received uint64, beside bool) uint64 {
	if beside {
		return max(received, l.out.acked)
	}
	return received
}

// saidBye says whether the peer was told that the link ends: nothing follows that.
func (l *Link) saidBye() bool { return l.att != nil && l.att.bye }

// displace ends the ride on the present attachment, for another one.
func (l *Link) displace() {
	if att := l.att; att != nil {
		att.err = ErrDisplaced
		l.detach(att)
		att.carrier.Abort(ErrDisplaced)
	}
	if l.leaving != nil {
		l.leaving.carrier.Abort(ErrDisplaced)
	}
}

// leaveSilence is how long a carrier that is being left may deliver nothing, not
// even its last message.
const leaveSilence = 3 * time.Second

// leave ends the ride on att, the present attachment, without a break: this end
// tells the peer that what follows comes on the next carrier, and reads until the
// peer says the same. Called with mu held.
func (l *Link) leave(att *attachment) {
	l.leaving = att
	att.last, att.end = true, l.out.sentEnd()
	att.patience = time.AfterFunc(leaveSilence, func() { l.lose(att, ErrReplaced) })
	att.err = ErrReplaced
	close(att.lost)
	l.work.Broadcast()
}

// wait goes on with the patience with the carrier that is being left.
func (l *Link) wait() {
	if l.leaving != nil && l.leaving.patience != nil {
		l.leaving.patience.Reset(leaveSilence)
	}
}

// quit is called by each of att's goroutines in the end. When it was left, and
// both ends have said so or it has failed, it is closed.
func (l *Link) quit(att *attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if att.loops--; att.loops > 0 || l.leaving != att {
		return
	}
	att.patience.Stop()
	att.patience = nil
	l.mu.Unlock()
	att.carrier.Close("replaced")
	l.mu.Lock()
	l.leaving = nil
	close(att.closed)
	l.work.Broadcast() // a bye waits for this
}

// awaitLeft waits until the carrier that is being left has ended, if there is one, or
// ctx ends.
func (l *Link) awaitLeft(ctx context.Context) {
	l.mu.Lock()
	leaving := l.leaving
	l.mu.Unlock()
	if leaving == nil {
		return
	}
	select {
	case <-leaving.closed:
	case <-ctx.Done():
	}
}

// awaitNext waits for the carrier that follows att, on which the peer has said its
// last.
func (l *Link) awaitNext(att *attachment) {
	timer := time.NewTimer(leaveSilence)
	defer timer.Stop()
	select {
	case <-att.lost:
	case <-timer.C:
		l.lose(att, fmt.Errorf("%w: no carrier follows the last message", ErrProtocol))
	}
}

// detach ends the ride on att, the present attachment. Called with mu held.
func (l *Link) detach(att *attachment) {
	l.att = nil
	l.lostAt = time.Now()
	close(att.lost)
	l.work.Broadcast()
	if l.err == nil && l.claims == 0 {
		l.expiry.Reset(l.window)
	}
}

// lose detaches att because of err, unless that has happened already.
func (l *Link) lose(att *attachment, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseLocked(att, err)
}

func (l *Link) loseLocked(att *attachment, err error) {
	if l.att == att {
		att.err = err
		if att.bye { // the peer has left upon it
			l.end(ErrClosed)
		} else {
			l.detach(att)
		}
	}
	att.carrier.Abort(err)
}

// claim keeps a detached link from expiring while a handshake is under way;
// unclaim ends that.
func (l *Link) claim() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.claims++
	l.expiry.Stop()
	return nil
}

func (l *Link) unclaim() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claims--
	if l.att == nil && l.err == nil && l.claims == 0 {
		l.expiry.Reset(l.window)
	}
}

// detachedSince says since when a link that had a carrier is without one; a
// link whose handshake is under way does not count.
func (l *Link) detachedSince() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lostAt, l.att == nil && l.started && l.claims == 0 && l.err == nil
}

// abandon ends the link without a word to the peer.
func (l *Link) abandon(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(err)
}

func (l *Link) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.att == nil && l.claims == 0 {
		l.end(ErrExpired)
	}
}

// readBuffer is the largest message and the carrier's own.
const readBuffer = MaxMessage + 64

// readBuffers hold one message while it is received.
var readBuffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// received is a message that a carrier has delivered, or why it did not.
type received struct {
	buf *[readBuffer]byte // nil: borrowed when a message begins
	n   int
	err error
}

func (r *received) read(c Carrier) {
	if r.err = c.AwaitMessage(); r.err != nil {
		return
	}
	r.buf = readBuffers.Get().(*[readBuffer]byte)
	r.n, r.err = c.ReadMessage(r.buf[:])
}

// release gives the buffer back. r may be nil.
func (r *received) release() {
	if r != nil && r.buf != nil {
		readBuffers.Put(r.buf)
		r.buf = nil
	}
}

// proveTime bounds the wait for the first message on a carrier that is to follow one
// that works.
const proveTime = 10 * time.Second

// prove waits for the first message on c, which is to follow a carrier that works: a
// box may let the handshake pass and nothing after it, or whoever shook hands may have
// gone away. The client speaks first. On error c is aborted.
func (l *Link) prove(ctx context.Context, c Carrier, checksum, client bool) (*received, error) {
	defer time.AfterFunc(proveTime, func() { c.Abort(ErrMute) }).Stop()
	defer context.AfterFunc(ctx, func() { c.Abort(context.Cause(ctx)) })()
	first := new(received)
	c.OnIdle(l.idle)
	if client {
		first.err = l.greet(c, checksum)
	}
	if first.err == nil {
		first.read(c)
	}
	if err := first.err; err != nil {
		c.Abort(err)
		first.release()
		return nil, err
	}
	return first, nil
}

// greet sends a message that says nothing new.
func (l *Link) greet(c Carrier, checksum bool) error {
	b := make([]byte, headerSize, headerSize+trailerSize)
	l.mu.Lock()
	putHeader(b, typeData, l.out.acked, l.received)
	l.mu.Unlock()
	sent, err := c.WriteMessages(seal(b, checksum))
	if err == nil && !sent {
		err = c.Flush()
	}
	return err
}

// readLoop hands what the carrier delivers to the link until either ends.
func (l *Link) readLoop(att *attachment) {
	defer l.quit(att)
	defer close(att.read)
	if att.after != nil { // it ends when the peer has said its last, and soon in any case
		<-att.after.read
		att.after = nil
	}
	got := att.first
	if att.first = nil; got == nil {
		got = new(received)
		att.carrier.OnIdle(l.idle)
		got.read(att.carrier)
	}
	defer got.release()
	for ; ; got.read(att.carrier) {
		err := got.err
		if err == nil && got.n > l.cfg.MaxMessage {
			err = fmt.Errorf("%w: message of %d bytes, at most %d", ErrProtocol, got.n, l.cfg.MaxMessage)
		}
		var m message
		if err == nil {
			m, err = parse(got.buf[:got.n], att.checksum)
		}
		var payload []byte
		if err == nil {
			payload, err = l.receive(att, m)
		}
		if err != nil {
			l.lose(att, err)
			return
		}
		if len(payload) > 0 {
			select {
			case <-l.handled:
				l.onReceive(payload)
			case <-l.Done():
			}
		}
		got.release() // most sessions are idle: the next message may be hours away
		l.Send()      // what is acknowledged, what the path has room for, and what onReceive has written
		if m.kind == typeLast {
			l.awaitNext(att)
			return
		}
	}
}

// receive processes m and returns what of its payload is new.
func (l *Link) receive(att *attachment, m message) (payload []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if att != l.att && att != l.leaving {
		return nil, ErrDisplaced
	}
	before := l.out.acked
	sample, err := l.out.ack(m.ack)
	if err != nil {
		return nil, err
	}
	if l.leaving != nil && (att == l.leaving || before < l.leaving.end && before < l.out.acked) {
		l.wait() // it delivers, or what we have sent on it arrives
	}
	if acked := l.out.acked - before; acked > 0 {
		att.progress = true
		l.pace.acknowledged(sample, acked, time.Now())
		l.account(accountEvery)
		l.settledLocked()
	}
	if m.offset > l.received {
		return nil, fmt.Errorf("%w: message at offset %d, %d received", ErrProtocol, m.offset, l.received)
	}
	if m.kind == typeBye {
		l.end(&ClosedByPeerError{Reason: string(m.payload)})
		return nil, l.err
	}
	known := l.received - m.offset
	if known >= uint64(len(m.payload)) {
		return nil, nil
	}
	payload = m.payload[known:]
	att.progress = true
	l.received += uint64(len(payload))
	l.scheduleAck()
	return payload, nil
}

// idle acknowledges what came, unless it was little, before the wait for more: it
// may be all that the peer may have under way.
func (l *Link) idle() {
	l.mu.Lock()
	due := l.received-l.ackSent >= minAck
	l.ackDue = l.ackDue || due
	l.mu.Unlock()
	if due {
		l.Send()
	}
}

func (l *Link) scheduleAck() {
	if l.received-l.ackSent >= l.ackPace.bytes {
		l.ackDue = true
	} else if !l.ackArmed {
		l.ackArmed = true
		l.ackTimer.Reset(ackDelay)
	}
}

func (l *Link) acknowledge() {
	l.mu.Lock()
	l.ackArmed = false
	l.ackDue = l.ackDue || l.received != l.ackSent
	l.mu.Unlock()
	l.Send()
}

// armCheck starts the timer of checkProgress if something is unacknowledged.
func (l *Link) armCheck() {
	if !l.checkOn && l.out.outstanding() > 0 {
		l.checkOn, l.checked = true, l.out.acked
		l.check.Reset(checkEvery)
	}
}

// checkProgress says the sender's offset when acknowledgements are overdue:
// should the end of what was sent have been lost on a carrier that seems alive,
// the peer sees the gap and cuts it.
func (l *Link) checkProgress() {
	l.mu.Lock()
	if l.checkOn = false; l.err != nil {
		l.mu.Unlock()
		return
	}
	if l.out.outstanding() > 0 && l.out.acked == l.checked && l.att != nil {
		l.ackDue = true
	}
	l.armCheck()
	l.mu.Unlock()
	l.Send()
}

// stopped returns a timer that runs f when it is Reset.
func stopped(f func()) *time.Timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}
