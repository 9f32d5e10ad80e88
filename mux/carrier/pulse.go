package carrier

import (
	"context"
	"time"
)

// Pongs are answered at this rate at most; a peer that keeps to the protocol
// pings every few seconds.
const (
	pongsPerSecond = 10
	pongBurst      = 16
)

// bucket is a token bucket of pongsPerSecond and pongBurst.
type bucket struct {
	tokens float64
	last   int64 // nanoseconds
}

func (b *bucket) take(now int64) bool {
	b.tokens = min(pongBurst, b.tokens+float64(now-b.last)*pongsPerSecond/float64(time.Second))
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// pinged is called by the WebSocket library for every ping received, while it
// reads. It reports whether to answer.
func (c *Conn) pinged(context.Context, []byte) bool {
	return !c.cork.congested() && c.pongs.take(c.cork.vitals.now())
}

// pulse sends pings and ends the Conn when the path is dead. It does no blocking
// I/O and returns when the Conn is dead.
//
// It wakes at least every quarter of the timeout. So it sees each moment at
// which something is due in time, without being told of writes and reads.
func (c *Conn) pulse() {
	h := heart{
		vitals:  c.cork.vitals,
		timeout: int64(c.opt.HeartbeatTimeout),
	}
	h.last = h.vitals.now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-timer.C:
		}
		h.interval = c.heartbeat.Load()
		verdict, next := h.check(h.vitals.now())
		switch verdict {
		case pulseDead:
			c.Abort(ErrHeartbeat)
			return
		case pulsePing:
			c.cork.ping()
		}
		timer.Reset(time.Duration(next))
	}
}

// flowing is the number of bytes from which on they are more than pings and
// pongs, on which we would answer for ever.
const flowing = 256

type verdict int

const (
	pulseWait verdict = iota
	pulsePing
	pulseDead
)

// heart decides when to ping and when the path is dead. It does no I/O and has
// no clock. All times are nanoseconds of the same clock as those of vitals.
type heart struct {
	vitals            *vitals
	interval, timeout int64
	last              int64 // when the last ping was decided on, at first when the pulse began
	due               int64 // when this check was to happen; 0: the first one
}

// check says what to do now, and in how many nanoseconds to check again.
func (h *heart) check(now int64) (verdict, int64) {
	v := h.vitals
	if h.due != 0 && now-h.due > h.timeout/4 {
		// This process was stopped or starved, and was not reading, even if a Read
		// was in progress. What has arrived meanwhile counts first.
		v.waitAgain(now)
	}

	next := h.timeout / 4
	ping := false

	reading := v.reading.Load()
	if left, asked, waiting := h.patience(now, reading); waiting {
		switch {
		case left > 0:
			next = min(next, left)
		case asked:
			return pulseDead, 0
		default:
			ping = true
		}
	}

	// Keeps idle middleboxes open, and finds dead ones.
	if now-h.last >= h.interval {
		ping = true
	}

	// The peer sends, and may have filled a slow path so much that our pong to
	// its ping is far away; or we do not read, and there will be no pong. Either
	// way it should hear from us before it gives us up.
	if now-v.written.Load() >= h.timeout/4 && (v.inflow.Load() > flowing || reading == 0) {
		ping = true
	}

	if ping {
		h.last = now
		next = min(next, h.timeout/2)
	}
	next = max(min(next, h.last+h.interval-now), int64(time.Millisecond))
	h.due = now + next
	if ping {
		return pulsePing, next
	}
	return pulseWait, next
}

// patience is used while something was written and nothing has come back. Only a
// ping has to be answered: half the timeout after a message a ping is due, and the
// path is dead when the timeout is over and the ping has had the other half of it.
// The time in which nobody read does not count, and while nobody reads nothing can
// be said.
//
// left is how long to wait yet. When that is over, asked tells the two cases apart.
func (h *heart) patience(now, reading int64) (left int64, asked, waiting bool) {
	pending, ping := h.vitals.pending.Load(), h.vitals.asked.Load()
	if pending == 0 || reading == 0 {
		return 0, false, false
	}
	silent := now - max(pending, reading)
	if ping == 0 {
		return h.timeout/2 - silent, false, true
	}
	unanswered := now - max(ping, reading)
	return max(h.timeout-silent, h.timeout/2-unanswered), true, true
}
