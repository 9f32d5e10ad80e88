package link

import (
	"testing"
	"time"
)

// takeAt sends one message of o at a time and returns its offset and size.
func (o *outbox) takeAt(at time.Time) (offset uint64, size int) {
	m := o.queue[o.next]
	_, s := o.take(0, sendSample{at: at})
	s.release()
	return m.offset, m.n
}

// What counts as acknowledged does not depend on the carrier that took it there,
// nor on the order in which the news arrive.
func TestOutboxAck(t *testing.T) {
	at := time.Unix(1e9, 0)
	o := outbox{maxMessage: minMaxMessage}
	defer o.discard()
	const full = minMaxMessage - headerSize - trailerSize
	o.append(make([]byte, 3*full))
	for i := range 3 {
		o.takeAt(at.Add(time.Duration(i)))
	}
	if err := o.rewind(full + 1); err != nil { // a new carrier
		t.Fatal(err)
	}
	if offset, size := o.takeAt(at.Add(9)); offset != full || size != full {
		t.Errorf("%d bytes at %d sent again first, want %d at %d", size, offset, full, full)
	}
	// Arrived on the former carrier after the handshake was written.
	if s, err := o.ack(3 * full); err != nil || o.outstanding() != 0 || s.at != at.Add(9) {
		t.Errorf("acknowledgement of all: sample %+v, %v, %d bytes left", s, err, o.outstanding())
	}
	if s, err := o.ack(2 * full); err != nil || o.acked != 3*full || !s.at.IsZero() {
		t.Errorf("late acknowledgement: sample %+v, %v, %d bytes acknowledged", s, err, o.acked)
	}
	if o.unsent != 0 || o.held != 0 || o.next != len(o.queue) {
		t.Errorf("%d bytes unsent, %d held, %d messages left", o.unsent, o.held, len(o.queue)-o.next)
	}
	if err := o.rewind(3*full - 1); err == nil {
		t.Error("resumed before what was acknowledged")
	}
}

// Only the last of the messages that were there is limited by the application.
func TestOutboxLimited(t *testing.T) {
	o := outbox{maxMessage: minMaxMessage}
	defer o.discard()
	o.append(make([]byte, minMaxMessage))
	for _, want := range []bool{false, true} {
		offset, size := o.takeAt(time.Now())
		if s, err := o.ack(offset + uint64(size)); err != nil || s.limited != want {
			t.Errorf("message at %d: limited %v, %v; want %v", offset, s.limited, err, want)
		}
	}
}
