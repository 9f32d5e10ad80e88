package link

import "time"

// Whoever has something to send does it himself, with [Link.Send], as long as the
// carrier takes it without blocking: to wake up another goroutine for it costs
// more than sending, and on another core the bytes are not in the caches. Each
// attachment has one more goroutine, writeLoop, which does the waiting for
// everybody. Never do two send at once: who begins sets attachment.sending, and
// what the others append meanwhile leaves with the next batch.

// maxBatch is how many messages at most are handed to a carrier at once.
const maxBatch = 8

// batch is messages on their way to the carrier.
type batch struct {
	messages [maxBatch][]byte
	slabs    [maxBatch]*slab // that hold them
	n        int

	socketLimit, limit int // what was set, and what is to be; 0: none

	empty [headerSize + maxReason + trailerSize]byte // a message without a slab
}

// Send sends what was appended and may be sent, as far as the carrier takes it at
// once. The rest follows by itself. It does not wait.
func (l *Link) Send() {
	l.mu.Lock()
	// What others append meanwhile must not be left behind. Those who append for
	// ever must not keep the caller for ever either.
	for range 2 {
		att := l.att
		if att == nil || att.sending || !l.maySend() || l.mayBye() {
			break
		}
		l.fill(att)
		l.mu.Unlock()
		sent, err := att.write()
		l.mu.Lock()
		if err == nil && !sent {
			att.blocked = true
			l.work.Broadcast() // also if the carrier was lost meanwhile: it is waited for
			break
		}
		l.sent(att, err)
	}
	if att := l.att; att != nil && !att.sending && (l.maySend() || l.mayBye()) {
		l.work.Broadcast()
	}
	l.unlockAndTell()
}

// writeLoop sends what nobody else does, until the carrier is lost, or has sent its
// last message, and nobody uses it any more.
func (l *Link) writeLoop(att *attachment) {
	defer l.quit(att)
	for {
		l.mu.Lock()
		idle := func() bool {
			return !att.blocked && (att.sending || l.att == att && !l.maySend() && !l.mayBye())
		}
		for idle() {
			l.work.Wait()
		}
		if !att.blocked {
			if l.att != att && !att.last {
				l.mu.Unlock()
				return
			}
			l.fill(att)
			l.mu.Unlock()
			sent, err := att.write()
			l.mu.Lock()
			att.blocked = err == nil && !sent
			if !att.blocked {
				l.sent(att, err)
			}
		}
		if att.blocked {
			att.blocked = false
			l.unlockAndTell() // there is room for what follows
			err := att.carrier.Flush()
			l.mu.Lock()
			l.sent(att, err)
		}
		if att.bye {
			l.mu.Unlock()
			att.carrier.Close(l.bye)
			l.mu.Lock()
			l.end(ErrClosed)
		}
		l.unlockAndTell()
	}
}

// unlockAndTell unlocks mu and tells those who found the link full that it is not.
func (l *Link) unlockAndTell() {
	room := l.awaited && !l.full() && l.err == nil
	l.awaited = l.awaited && !room
	l.mu.Unlock()
	if room {
		l.onRoom()
	}
}

// mayTake says whether there is a message to send and the path has room for it.
func (l *Link) mayTake() bool {
	return l.out.next < len(l.out.queue) && l.out.underWay() < l.pace.pathLimit()
}

// maySend says whether there is such a message, or something to acknowledge.
func (l *Link) maySend() bool { return l.ackDue || l.mayTake() }

// mayBye says whether it is time to tell the peer that the link ends. What is under
// way on a carrier that is being left must not be lost by it.
func (l *Link) mayBye() bool {
	return l.closing && l.out.next == len(l.out.queue) && l.leaving == nil
}

// fill puts what is to be sent next into att's batch. Called with mu held, by who
// is sending from then on.
func (l *Link) fill(att *attachment) {
	att.sending = true
	b := &att.batch
	b.n = 0
	b.limit = l.pace.socketLimit()
	ack, now := l.received, time.Now()
	switch {
	case l.att != att: // left
		att.last = false
		putHeader(b.empty[:], typeLast, att.end, ack)
		b.messages[0] = b.empty[:headerSize]
		b.n = 1
	case l.mayTake():
		sample := l.pace.sending(now, l.out.underWay() == 0)
		size := 0
		for most := l.pace.unsentLimit(); b.n < maxBatch && size < most && l.mayTake(); b.n++ {
			b.messages[b.n], b.slabs[b.n] = l.out.take(ack, sample)
			size += len(b.messages[b.n])
		}
		l.armCheck()
	case l.mayBye():
		att.bye = true
		putHeader(b.empty[:], typeBye, l.out.end, ack)
		b.messages[0] = b.empty[:headerSize+copy(b.empty[headerSize:headerSize+maxReason], l.bye)]
		b.n = 1
	default:
		putHeader(b.empty[:], typeData, l.out.sentEnd(), ack)
		b.messages[0] = b.empty[:headerSize]
		b.n = 1
	}
	l.ackPace.sent(ack-l.ackSent, now)
	l.ackSent = ack
	if l.att == att { // else the next carrier has yet to say something
		l.ackDue = false
	}
}

// write hands the batch to the carrier.
func (att *attachment) write() (sent bool, err error) {
	b := &att.batch
	if l := b.limit; b.socketLimit < 0 || l > 2*b.socketLimit || 2*l < b.socketLimit || l == 0 && b.socketLimit != 0 {
		att.carrier.SetUnsentLimit(l)
		b.socketLimit = l
	}
	for i, m := range b.messages[:b.n] {
		b.messages[i] = seal(m, att.checksum)
	}
	return att.carrier.WriteMessages(b.messages[:b.n]...)
}

// sent ends what fill began: the carrier does not need the batch any more. Called
// with mu held.
func (l *Link) sent(att *attachment, err error) {
	b := &att.batch
	att.sending = false
	for i := range b.n {
		if s := b.slabs[i]; s != nil {
			s.release()
		}
		b.messages[i], b.slabs[i] = nil, nil
	}
	if err != nil {
		att.bye = false
		l.loseLocked(att, err)
	}
	if l.att != att {
		l.work.Broadcast() // writeLoop waits for the end of this
	}
}
