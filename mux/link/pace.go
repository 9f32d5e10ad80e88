package link

import "time"

// pace measures the path from acknowledgements and says how many bytes may be
// under way, and how many may wait to be: about a fixed time's worth, because
// bytes that wait below the mux make every stream wait, and too few leave a fast
// path idle. What is under way includes what fills the buffers of middleboxes,
// which no setting of our own sockets can keep short.
//
// It follows BBR (draft-ietf-ccwg-bbr), of which TCP below does the pacing:
//
//   - Rate is the largest delivery rate of the last window to twice that. A sample
//     is what was acknowledged since a message was sent, over the time in which
//     that was sent or acknowledged, whichever is longer (4.1). A sample taken
//     while nothing was left to send can only raise it, unless the message had to
//     queue: the system's buffers take in megabytes, and nothing is ever left
//     before a path that is full.
//   - Until the rate stops growing (5.3.1) twice what the path holds may be under
//     way, and afterwards little more than it holds.
//   - Once in each window less is under way for one round trip, so that its time
//     is measured without the queue that this end makes itself (5.3.4).
type pace struct {
	delivered   uint64 // bytes acknowledged so far
	deliveredAt time.Time
	firstSent   time.Time // when the last message that was acknowledged had been sent
	turned      time.Time // the present window began

	rate     float64 // bytes per second, largest of this window
	previous float64 // and of the one before
	rtt      time.Duration
	rttOlder time.Duration // smallest of this window and of the one before

	draining bool          // until something sent since the window began is acknowledged
	rttBest  time.Duration // smallest ever; grows slowly to that of the windows

	round    uint64 // delivered at which the present round trip ends
	plateau  float64
	flat     int // round trips in which the rate did not grow
	pathFull bool
}

const (
	paceWindow = 5 * time.Second

	waitUnsent   = 2 * time.Millisecond // worth of bytes that may wait in the link
	minUnsent    = 16 << 10
	maxUnsent    = 256 << 10
	minMessage   = 8 << 10
	firstMessage = 16 << 10

	firstPath = 64 << 10 // under way before anything is known
	minPath   = 16 << 10
	drained   = 0.85     // of what the path holds, while draining: less than it holds without the wait
	minQueued = 64 << 10 // less may have waited for a late acknowledgement only

	growth     = 1.25 // of the rate from one round trip to the next, while it grows
	flatRounds = 3

	waitSocket  = 10 * time.Millisecond // worth of bytes that may wait, unsent, in the socket below
	minSocket   = 16 << 10
	firstSocket = 128 << 10 // before anything is known
	fastRate    = 64 << 20  // bytes per second from which on the socket is left alone
)

// sending returns what is to be known of a message that is sent now. idle says
// that nothing is under way.
func (p *pace) sending(now time.Time, idle bool) sendSample {
	if idle {
		p.deliveredAt, p.firstSent = now, now
	}
	return sendSample{at: now, delivered: p.delivered, deliveredAt: p.deliveredAt, firstSent: p.firstSent}
}

// acknowledged notes that bytes arrived, the last whole message of which has
// sample s.
func (p *pace) acknowledged(s sendSample, bytes uint64, now time.Time) {
	p.delivered += bytes
	p.deliveredAt = now
	if s.at.IsZero() {
		return
	}
	p.firstSent = s.at
	if now.Sub(p.turned) > paceWindow {
		p.turned, p.draining = now, true
		if p.rttBest == 0 || p.rtt < p.rttBest {
			p.rttBest = p.rtt
		} else {
			p.rttBest = min(p.rttBest+p.rttBest/4, p.rtt)
		}
		p.previous, p.rttOlder = p.rate, p.rtt
		p.rate, p.rtt = 0, 0
	}
	if s.at.After(p.turned) {
		p.draining = false
	}
	took := max(now.Sub(s.at), time.Microsecond)
	if p.rtt == 0 || took < p.rtt {
		p.rtt = took
	}
	covered := p.delivered - s.delivered
	interval := max(s.at.Sub(s.firstSent), now.Sub(s.deliveredAt), time.Microsecond)
	rate := float64(covered) / interval.Seconds()
	queued := took > 2*p.roundTrip() && covered >= minQueued
	if s.limited && !queued && (p.bandwidth() == 0 || rate < p.bandwidth()) {
		return
	}
	p.rate = max(p.rate, rate)
	if s.delivered >= p.round {
		p.round = p.delivered
		p.roundEnded()
	}
}

// roundEnded notes whether the rate still grows.
func (p *pace) roundEnded() {
	if rate := p.bandwidth(); rate >= growth*p.plateau {
		p.plateau, p.flat = rate, 0
		return
	}
	p.flat++
	p.pathFull = p.pathFull || p.flat >= flatRounds
}

// bandwidth in bytes per second, 0 while unknown.
func (p *pace) bandwidth() float64 { return max(p.rate, p.previous) }

// roundTrip is the shortest time from sending to acknowledgement seen lately,
// including the peer's delay before acknowledging; 0 while unknown.
func (p *pace) roundTrip() time.Duration {
	if p.rtt == 0 || p.rttOlder != 0 && p.rttOlder < p.rtt {
		return p.rttOlder
	}
	return p.rtt
}

// unsentLimit is how many bytes may wait in the link.
func (p *pace) unsentLimit() int {
	rate := p.bandwidth()
	if rate == 0 {
		return maxUnsent
	}
	return int(min(max(rate*waitUnsent.Seconds(), minUnsent), maxUnsent))
}

// message is how large messages should be: what is under way goes by whole ones,
// and the time of a large one on a slow line looks like that of a long path.
func (p *pace) message() int {
	if p.bandwidth() == 0 {
		return firstMessage
	}
	return max(minMessage, p.unsentLimit()/2)
}

// pathLimit is how many bytes may be sent and not yet acknowledged: what the path
// holds, and some to wait, from which a path that has become faster is noticed.
func (p *pace) pathLimit() uint64 {
	rate := p.bandwidth()
	if rate == 0 {
		return firstPath
	}
	rtt := p.roundTrip()
	holds := rate * rtt.Seconds()
	switch {
	case !p.pathFull:
		holds *= 2
	case p.draining:
		return max(minPath, uint64(drained*rate*min(rtt, p.rttBest).Seconds()))
	}
	wait := min(max(rtt/32, 250*time.Microsecond), 10*time.Millisecond)
	return uint64(holds + max(minPath, rate*wait.Seconds()))
}

// socketLimit is how many bytes may wait unsent in the carrier's socket; 0 sets
// no limit.
func (p *pace) socketLimit() int {
	switch rate := p.bandwidth(); {
	case rate == 0:
		return firstSocket
	case rate >= fastRate:
		return 0
	default:
		return int(max(rate*waitSocket.Seconds(), minSocket))
	}
}

// ackPace says when a receiver acknowledges: after about ackWorth of what it
// receives, so that the sender on a slow path need not have more under way.
type ackPace struct {
	at    time.Time
	bytes uint64 // to be received before the next acknowledgement
}

const (
	ackWorth = 500 * time.Microsecond
	minAck   = 8 << 10
	maxAck   = 256 << 10
)

// sent notes an acknowledgement of n bytes.
func (a *ackPace) sent(n uint64, now time.Time) {
	if n == 0 {
		return
	}
	took := max(now.Sub(a.at), time.Microsecond)
	a.bytes = uint64(min(max(float64(n)/took.Seconds()*ackWorth.Seconds(), minAck), maxAck))
	a.at = now
}
