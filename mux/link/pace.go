package link

import (
	"math"
	"time"
)

// pace measures the path from acknowledgements and says how many bytes may be
// under way, and how many may wait to be: about a fixed time's worth, because
// bytes that wait below the mux make every stream wait, and too few leave a fast
// path idle. What is under way includes what fills the buffers of middleboxes,
// which no setting of our own sockets can keep short.
//
// Rate is the largest delivery rate of the last rateWindow to twice that, as in
// BBR (draft-ietf-ccwg-bbr, 4.1): bytes acknowledged between the sending of a
// message and its acknowledgement, over that time. A sample taken while the
// application had nothing more to send can only raise it.
type pace struct {
	delivered uint64  // bytes acknowledged so far
	rate      float64 // bytes per second, 0 while unknown
	previous  float64 // maximum of the bucket before
	turned    time.Time

	rtt      time.Duration // smallest of its two buckets, 0 while unknown
	rttOlder time.Duration
}

const (
	rateWindow = 5 * time.Second

	waitUnsent  = 15 * time.Millisecond // worth of bytes that may wait in the link
	waitSocket  = 10 * time.Millisecond // and, unsent, in the socket below
	waitPath    = time.Millisecond      // and in the path, beside what fills it
	minUnsent   = 32 << 10
	maxUnsent   = 256 << 10
	minSocket   = 16 << 10
	minPath     = 32 << 10
	firstSocket = 128 << 10 // before anything is known
	fastRate    = 64 << 20  // bytes per second from which on the socket is left alone
)

func (p *pace) acknowledged(s sendSample, bytes uint64, now time.Time) {
	p.delivered += bytes
	if s.at.IsZero() {
		return
	}
	took := max(now.Sub(s.at), time.Microsecond)
	if now.Sub(p.turned) > rateWindow {
		p.previous, p.rttOlder, p.turned = p.rate, p.rtt, now
		p.rate, p.rtt = 0, 0
	}
	if p.rtt == 0 || took < p.rtt {
		p.rtt = took
	}
	rate := float64(p.delivered-s.delivered) / took.Seconds()
	if s.limited && rate < p.bandwidth() || s.limited && p.bandwidth() == 0 {
		return
	}
	p.rate = max(p.rate, rate)
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

// pathLimit is how many bytes may be sent and not yet acknowledged: what the path
// holds, once more so that a faster path is noticed, and some to wait.
func (p *pace) pathLimit() uint64 {
	rate := p.bandwidth()
	if rate == 0 {
		return math.MaxUint64
	}
	return minPath + uint64(rate*(2*p.roundTrip()+waitPath).Seconds())
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
