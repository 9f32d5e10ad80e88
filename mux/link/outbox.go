package link

import (
	"fmt"
	"sync"
	"time"
)

// outbox is the replay buffer: the messages of one direction that the peer has
// not acknowledged, built in place. Bytes are copied into it once; the carrier
// sends a message straight from the slab that holds it, and sends it again from
// there after a cut. It has no lock, clock or goroutine of its own.
//
//	queue:   [ sent, unacknowledged ... | unsent ... | open ]
//	          ▲ head                      ▲ next       ▲ last: still growing
//
// A message is open until it is taken for sending; appended bytes join it, so
// whatever gathers while a carrier is busy leaves as one message.
type outbox struct {
	maxMessage int // bytes on the wire, header and trailer included
	preferred  int // the same, for what is appended from now on; 0: maxMessage

	queue  []outMessage
	head   int // index in queue of the oldest unacknowledged message
	next   int // index in queue of the first unsent message
	tail   *slab
	acked  uint64 // all before it was acknowledged
	sent   uint64 // all before it was sent at least once, on whatever carrier
	end    uint64 // offset that the next appended byte gets
	unsent int    // payload bytes in queue[next:]
	held   int    // payload and overhead in queue[head:], what ReplayBuffer bounds
}

type outMessage struct {
	slab   *slab
	start  int // of the header in the slab
	n      int // payload bytes
	offset uint64
	sealed bool // taken for sending at least once: its bytes no longer change

	sample sendSample
}

// overhead is charged for each message beside its payload.
const overhead = headerSize + trailerSize + 96

// minOpen is the room that must be left in a slab to begin a message there.
const minOpen = headerSize + trailerSize + 1024

const slabSize = MaxMessage

// slab is a piece of memory shared by consecutive messages. It goes back to the
// pool when nobody refers to it: the messages in it, the outbox as its tail,
// and a writer that is just sending from it.
type slab struct {
	buf  [slabSize]byte
	used int
	refs int
}

var slabs = sync.Pool{New: func() any { return new(slab) }}

func (s *slab) release() {
	s.refs--
	if s.refs == 0 {
		s.used = 0
		slabs.Put(s)
	}
}

func (o *outbox) outstanding() uint64 { return o.end - o.acked }

// append copies p to the end of the stream.
func (o *outbox) append(p []byte) {
	for len(p) > 0 {
		m := o.open()
		s := m.slab
		most := o.maxMessage
		if o.preferred > 0 {
			most = min(most, o.preferred)
		}
		room := max(0, min(most-headerSize-trailerSize-m.n, len(s.buf)-trailerSize-s.used))
		n := copy(s.buf[s.used:s.used+room], p)
		s.used += n
		m.n += n
		o.end += uint64(n)
		o.unsent += n
		o.held += n
		p = p[n:]
		if n == room {
			o.closeTail(m)
		}
	}
}

// open returns the message that appended bytes join, beginning one if need be.
func (o *outbox) open() *outMessage {
	if o.head < len(o.queue) {
		if m := &o.queue[len(o.queue)-1]; !m.sealed {
			return m
		}
	}
	if o.tail == nil || len(o.tail.buf)-o.tail.used < minOpen {
		if o.tail != nil {
			o.tail.release()
		}
		o.tail = slabs.Get().(*slab)
		o.tail.refs = 1
	}
	s := o.tail
	s.refs++
	o.queue = append(o.queue, outMessage{slab: s, start: s.used, offset: o.end})
	s.used += headerSize
	o.held += overhead
	return &o.queue[len(o.queue)-1]
}

// closeTail ends an open message and keeps room for its trailer.
func (o *outbox) closeTail(m *outMessage) {
	m.sealed = true
	m.slab.used += trailerSize
}

// take returns the next unsent message, of which there must be one, with its
// header filled in, and counts it as sent. The bytes have capacity for the
// trailer; the caller releases the slab they are in when it needs them no longer.
func (o *outbox) take(ack uint64, sample sendSample) (b []byte, s *slab) {
	m := &o.queue[o.next]
	if !m.sealed {
		o.closeTail(m)
	}
	o.next++
	o.unsent -= m.n
	o.sent = max(o.sent, m.offset+uint64(m.n))
	m.sample = sample
	m.sample.limited = o.unsent == 0
	end := m.start + headerSize + m.n
	b = m.slab.buf[m.start : end : end+trailerSize]
	putHeader(b, typeData, m.offset, ack)
	m.slab.refs++
	return b, m.slab
}

// sentEnd is the offset up to which everything was sent on the present carrier.
func (o *outbox) sentEnd() uint64 {
	if o.next == len(o.queue) {
		return o.end
	}
	return o.queue[o.next].offset
}

// underWay is how many bytes were sent on the present carrier and are not
// acknowledged yet. After a resumption in the middle of a message, which is sent
// again as a whole, the acknowledged offset may lie beyond what was sent.
func (o *outbox) underWay() uint64 {
	if end := o.sentEnd(); end > o.acked {
		return end - o.acked
	}
	return 0
}

// ack drops what the peer has received up to offset, and returns the sample of
// the last message that it covers as a whole.
func (o *outbox) ack(offset uint64) (s sendSample, err error) {
	if offset > o.sent {
		return s, fmt.Errorf("%w: %d bytes acknowledged, %d sent", ErrProtocol, offset, o.sent)
	}
	if offset <= o.acked {
		return s, nil // late: a newer one came first
	}
	o.acked = offset
	for ; o.head < len(o.queue); o.head++ {
		m := &o.queue[o.head]
		if m.offset+uint64(m.n) > offset {
			break
		}
		if o.head >= o.next { // sent on an earlier carrier, not on this one
			o.unsent -= m.n
			o.next++
		} else {
			s = m.sample
		}
		o.held -= m.n + overhead
		m.slab.release()
		m.slab = nil
	}
	o.compact()
	return s, nil
}

// compact gives back what the queue no longer needs in front, in constant time
// for each message on average.
func (o *outbox) compact() {
	if o.head == len(o.queue) {
		o.queue, o.next, o.head = o.queue[:0], 0, 0
		if o.tail != nil {
			o.tail.release()
			o.tail = nil
		}
		return
	}
	if o.head >= 64 && o.head >= len(o.queue)/2 {
		o.queue = o.queue[:copy(o.queue, o.queue[o.head:])]
		o.next -= o.head
		o.head = 0
	}
}

// check says whether the peer can have received everything before offset, and not
// more, as it says in a handshake.
func (o *outbox) check(offset uint64) error {
	switch {
	case offset < o.acked:
		return fmt.Errorf("%w: peer has %d bytes after it acknowledged %d", ErrProtocol, offset, o.acked)
	case offset > o.sent:
		return fmt.Errorf("%w: peer has %d bytes, %d sent", ErrProtocol, offset, o.sent)
	}
	return nil
}

// rewind makes everything from offset on unsent again, for a new carrier. The
// first message may begin before offset; the peer drops what it knows.
func (o *outbox) rewind(offset uint64) error {
	if err := o.check(offset); err != nil {
		return err
	}
	if _, err := o.ack(offset); err != nil {
		return err
	}
	o.next = o.head
	o.unsent = 0
	for i := o.head; i < len(o.queue); i++ {
		o.unsent += o.queue[i].n
	}
	return nil
}

// discard drops everything, at the end of the link.
func (o *outbox) discard() {
	for i := o.head; i < len(o.queue); i++ {
		o.queue[i].slab.release()
	}
	o.queue, o.head, o.next, o.unsent, o.held = nil, 0, 0, 0, 0
	if o.tail != nil {
		o.tail.release()
		o.tail = nil
	}
}

// sendSample is what was known when a message was sent, from which its
// acknowledgement makes a measurement of the path.
type sendSample struct {
	at          time.Time
	delivered   uint64    // bytes acknowledged by then
	deliveredAt time.Time // when the last of them were
	firstSent   time.Time // when the last message that was acknowledged had been sent
	limited     bool      // nothing was left to send
}
