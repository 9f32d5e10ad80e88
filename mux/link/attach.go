package link

import (
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
	progress bool // carried bytes of the stream, either way; guarded by Link.mu
	bye      bool // the last message was handed to it; guarded by Link.mu
	running  sync.WaitGroup
}

// terms are what a handshake settled about a carrier.
type terms struct {
	peerReceived uint64 // bytes of our stream that the peer has
	maxMessage   int    // largest message the peer accepts
	checksum     bool
}

// attach makes c the link's carrier and sends again what the peer lacks. The
// former carrier is aborted and its goroutines are joined first, so it may
// block for as long as their carrier needs to notice. On error c is aborted.
func (l *Link) attach(c Carrier, t terms) (*attachment, error) {
	l.attachMu.Lock()
	defer l.attachMu.Unlock()

	l.mu.Lock()
	if old := l.att; old != nil {
		old.err = ErrDisplaced
		l.detach(old)
		old.carrier.Abort(ErrDisplaced)
	}
	l.mu.Unlock()
	if l.last != nil {
		l.last.running.Wait()
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.err
	if err == nil {
		err = l.out.rewind(t.peerReceived)
	}
	if err != nil {
		c.Abort(err)
		return nil, err
	}
	att := &attachment{carrier: c, checksum: t.checksum, lost: make(chan struct{}), since: time.Now()}
	l.att, l.last, l.started = att, att, true
	l.expiry.Stop()
	l.out.maxMessage = min(t.maxMessage, slabSize)
	l.ackDue = true // tells the peer what arrived since the handshake
	l.armCheck()
	att.running.Go(func() { l.readLoop(att) })
	att.running.Go(func() { l.writeLoop(att) })
	l.space.Broadcast()
	return att, nil
}

// detach ends the ride on att, the present attachment. Called with mu held.
func (l *Link) detach(att *attachment) {
	l.att = nil
	l.lostAt = time.Now()
	close(att.lost)
	l.work.Broadcast()
	l.room.Broadcast()
	if l.err == nil && l.claims == 0 {
		l.expiry.Reset(l.window)
	}
}

// lose detaches att because of err, unless that has happened already.
func (l *Link) lose(att *attachment, err error) {
	l.mu.Lock()
	if l.att == att {
		att.err = err
		if att.bye { // the peer has left upon it
			l.end(ErrClosed)
		} else {
			l.detach(att)
		}
	}
	l.mu.Unlock()
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

// readLoop hands what the carrier delivers to the link until either ends.
func (l *Link) readLoop(att *attachment) {
	in := inMessages.Get().(*inMessage)
	defer func() { inMessages.Put(in) }()
	for {
		n, err := att.carrier.ReadMessage(in.buf[:])
		if err != nil {
			l.lose(att, err)
			return
		}
		if n > l.cfg.MaxMessage {
			l.lose(att, fmt.Errorf("%w: message of %d bytes, at most %d", ErrProtocol, n, l.cfg.MaxMessage))
			return
		}
		m, err := parse(in.buf[:n], att.checksum)
		if err != nil {
			l.lose(att, err)
			return
		}
		kept, err := l.receive(att, in, m)
		if err != nil {
			l.lose(att, err)
			return
		}
		if kept {
			in = inMessages.Get().(*inMessage)
		}
	}
}

// smallMessage payloads are copied behind what already waits to be read, if
// there is room, so that many of them need not hold a buffer each.
const smallMessage = 16 << 10

// receive processes m, which lies in in. kept says that in now belongs to the
// inbox. It waits while the inbox is full.
func (l *Link) receive(att *attachment, in *inMessage, m message) (kept bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.att != att {
		return false, ErrDisplaced
	}
	before := l.out.acked
	sample, err := l.out.ack(m.ack)
	if err != nil {
		return false, err
	}
	if acked := l.out.acked - before; acked > 0 {
		att.progress = true
		l.pace.acknowledged(sample, acked, time.Now())
		l.space.Signal()
		l.work.Signal()
		if l.out.outstanding() == 0 {
			l.settled.Broadcast()
		}
	}
	if m.offset > l.received {
		return false, fmt.Errorf("%w: message at offset %d, %d received", ErrProtocol, m.offset, l.received)
	}
	if m.kind == typeBye {
		l.end(&ClosedByPeerError{Reason: string(m.payload)})
		return false, l.err
	}
	known := l.received - m.offset
	if known >= uint64(len(m.payload)) {
		return false, nil
	}
	for len(l.inbox) >= inboxMax && l.att == att {
		l.room.Wait()
	}
	if l.att != att {
		return false, ErrDisplaced
	}
	payload := m.payload[known:]
	att.progress = true
	l.received += uint64(len(payload))
	l.scheduleAck()
	l.arrived.Signal()
	if n := len(l.inbox); n > 0 && len(payload) <= smallMessage {
		if last := l.inbox[n-1]; len(payload) <= len(last.buf)-last.end {
			last.end += copy(last.buf[last.end:], payload)
			return false, nil
		}
	}
	in.start = headerSize + int(known)
	in.end = headerSize + len(m.payload)
	l.inbox = append(l.inbox, in)
	return true, nil
}

func (l *Link) scheduleAck() {
	if l.received-l.ackSent >= l.ackPace.bytes {
		l.ackDue = true
		l.work.Signal()
	} else if !l.ackArmed {
		l.ackArmed = true
		l.ackTimer.Reset(ackDelay)
	}
}

func (l *Link) acknowledge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ackArmed = false
	if l.received != l.ackSent {
		l.ackDue = true
		l.work.Signal()
	}
}

// armCheck starts the timer of checkProgress if something is unacknowledged.
func (l *Link) armCheck() {
	if !l.checkOn && l.out.outstanding() > 0 {
		l.checkOn, l.checked = true, l.out.acked
		l.check.Reset(checkEvery)
	}
}

// checkProgress has the writer say its offset when acknowledgements are
// overdue: should the end of what was sent have been lost on a carrier that
// seems alive, the peer sees the gap and cuts it.
func (l *Link) checkProgress() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checkOn = false; l.err != nil {
		return
	}
	if l.out.outstanding() > 0 && l.out.acked == l.checked && l.att != nil {
		l.ackDue = true
		l.work.Signal()
	}
	l.armCheck()
}

// mayTake says whether there is a message to send and the path has room for it.
func (l *Link) mayTake() bool {
	return l.out.next < len(l.out.queue) && l.out.sentEnd()-l.out.acked < l.pace.pathLimit()
}

// mayBye says whether it is time to tell the peer that the link ends.
func (l *Link) mayBye() bool { return l.closing && l.out.next == len(l.out.queue) }

// maxBatch is how many messages at most are handed to a carrier at once.
const maxBatch = 8

// writeLoop sends what there is to send until the carrier is lost.
func (l *Link) writeLoop(att *attachment) {
	var empty [headerSize + maxReason + trailerSize]byte
	var batch [maxBatch][]byte
	var slabs [maxBatch]*slab
	socketLimit := -1
	for {
		l.mu.Lock()
		for l.att == att && !l.mayTake() && !l.mayBye() && !l.ackDue && !l.hasRoom() {
			l.work.Wait()
		}
		if l.att != att {
			l.mu.Unlock()
			return
		}
		n, size := 0, 0
		ack, now := l.received, time.Now()
		bye := l.mayBye()
		switch {
		case l.mayTake():
			sample := l.pace.sending(now, l.out.sentEnd() == l.out.acked)
			for most := l.pace.unsentLimit(); n < maxBatch && size < most && l.mayTake(); n++ {
				batch[n], slabs[n] = l.out.take(ack, sample)
				size += len(batch[n])
			}
			l.armCheck()
		case bye:
			att.bye = true
			putHeader(empty[:], typeBye, l.out.end, ack)
			batch[0] = empty[:headerSize+copy(empty[headerSize:headerSize+maxReason], l.bye)]
			n = 1
		case l.ackDue:
			putHeader(empty[:], typeData, l.out.sentEnd(), ack)
			batch[0] = empty[:headerSize]
			n = 1
		}
		if n > 0 {
			l.ackPace.sent(ack-l.ackSent, now)
			l.ackSent, l.ackDue = ack, false
		}
		limit := l.pace.socketLimit()
		l.space.Signal()
		room := l.hasRoom()
		l.awaited = l.awaited && !room
		l.mu.Unlock()
		if room {
			l.onRoom()
		}
		if n == 0 {
			continue
		}

		if socketLimit < 0 || limit > 2*socketLimit || 2*limit < socketLimit || limit == 0 && socketLimit != 0 {
			att.carrier.SetUnsentLimit(limit)
			socketLimit = limit
		}
		for i := range batch[:n] {
			batch[i] = seal(batch[i], att.checksum)
		}
		err := att.carrier.WriteMessages(batch[:n]...)
		l.mu.Lock()
		att.bye = bye && err == nil
		for i, s := range slabs {
			if s != nil {
				s.release()
				slabs[i] = nil
			}
		}
		l.mu.Unlock()
		switch {
		case err != nil:
			l.lose(att, err)
			return
		case bye:
			att.carrier.Close(l.bye)
			l.mu.Lock()
			l.end(ErrClosed)
			l.mu.Unlock()
			return
		}
	}
}

// stopped returns a timer that runs f when it is Reset.
func stopped(f func()) *time.Timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}
