package tunnel

import (
	"context"
	"errors"
	"net"
	"time"

	"culvert/mux/link"
)

const (
	watchEvery = time.Second
	// watchJump is by how much the clock on the wall must have gone ahead of the
	// program's to tell that the machine was asleep.
	watchJump = 2 * time.Second
	// watchGap is how long the program must not have run to tell the same, where
	// both clocks go on in sleep.
	watchGap = 15 * time.Second
	// wakeProbe is how long a carrier may take to answer after that, and lateProbe
	// after an answer was late, where no longer round trips were measured.
	wakeProbe = 500 * time.Millisecond
	lateProbe = time.Second
	// longestProbe is how long it may take whatever was measured.
	longestProbe = 5 * time.Second
)

var (
	errNetworkChanged = errors.New("no answer after the network changed")
	errForgotten      = errors.New("no answer after a quiet time")
)

// watch notices that the machine was asleep, or that its way to the server is
// another one or there again. Both leave carriers that are dead and do not know.
type watch struct {
	now   func() time.Time
	route func(addr string) string // the local address towards addr; "" if there is no way

	last time.Time
	addr string
	from string // the route to addr
}

func newWatch() *watch { return &watch{now: time.Now, route: localAddress} }

// What look says has changed.
const (
	asleep     = "the machine was asleep"
	otherRoute = "the route is another one"
)

// look is called about every watchEvery with the address of the server as far as
// it is known. It says what has changed since the last time, "" for nothing. A
// route that is lost is no change: it may come back. That the server has another
// address is none either, unless the way to the last one has changed, too.
func (w *watch) look(addr string) (changed string) {
	now := w.now()
	if !w.last.IsZero() {
		wall, ran := now.Round(0).Sub(w.last.Round(0)), now.Sub(w.last)
		if wall-ran > watchJump || ran > watchGap {
			changed = asleep
		}
	}
	w.last = now
	if addr == "" {
		return changed
	}
	if w.addr != "" {
		from := w.route(w.addr)
		if from != "" && from != w.from {
			changed = otherRoute
		}
		w.from = from
	}
	if addr != w.addr {
		w.addr, w.from = addr, w.route(addr)
	}
	return changed
}

// localAddress asks the system from which address it would send to addr. Nothing
// is sent.
func localAddress(addr string) string {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "udp", addr) //nolint:forbidigo // nothing is sent, and no stream has it
	if err != nil {
		return ""
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return ""
	}
	return local.IP.String() + "%" + local.Zone
}

// watch looks after the session's carrier until ctx ends.
func (s *clientSession) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	w := s.client.newWatch()
	w.addr, w.from = s.client.way()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c := s.link.Carrier()
		if c != nil && s.learner.Load().look(c) && !s.alive(ctx, c, lateProbe) {
			c.Abort(errForgotten)
		}
		addr, ok := s.address.Load().(string)
		if !ok { // no carrier yet: it may be the one of the last session
			addr = w.addr
		}
		changed := w.look(addr)
		s.client.setWay(w.addr, w.from)
		if changed != "" {
			s.wake(ctx, c, changed)
		}
	}
}

// wake dials at once if the link has no carrier, and when c does not answer. On another
// route another kind of carrier may pass.
func (s *clientSession) wake(ctx context.Context, c link.Carrier, why string) {
	s.log.Info("network changed", keyReason, why)
	if why == otherRoute {
		for _, d := range s.client.dialers {
			d.Ladder.Forget()
		}
	}
	s.link.Wake()
	if c == nil {
		return
	}
	if !s.alive(ctx, c, wakeProbe) {
		c.Abort(errNetworkChanged)
	}
}

// alive asks c for a sign of life, and says whether there was one in time or the
// link no longer rides on c.
func (s *clientSession) alive(ctx context.Context, c link.Carrier, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime(limit, s.link.RoundTrip()))
	defer cancel()
	return probe(ctx, s.link) == nil || s.link.Carrier() != c
}

// probeTime is limit, or several round trips where those are longer.
func probeTime(limit, roundTrip time.Duration) time.Duration {
	return max(limit, min(3*roundTrip, longestProbe))
}
