package carrier

import "time"

// Life is what a Conn has seen of its path, for those who learn from it.
type Life struct {
	// Age is the time since it was connected, TLS and upgrade included, or what
	// that was when it died.
	Age time.Duration

	// Survived is the longest time without a byte in either direction after
	// which something was sent and the peer was still heard.
	Survived time.Duration

	// Quiet is, of a dead Conn, how long no byte had come or gone when the path
	// turned out to be dead. It is exact if the path said so by itself. If not,
	// something was sent then and was not answered, and this end gave the Conn up:
	// the path may have been dead for any part of that time.
	// Of a living Conn it is the same, should it be given up now.
	Quiet time.Duration
	Exact bool

	// Waiting is for how long something was sent and nothing has come although
	// somebody reads. It need not have been anything that is answered: only Probe
	// makes sure of that.
	Waiting time.Duration
}

// Life returns what c has seen so far.
func (c *Conn) Life() Life {
	v := c.cork.vitals
	end := v.ended.Load()
	if end == 0 {
		end = v.now()
	}
	l := Life{Age: time.Duration(end), Survived: time.Duration(v.survived.Load())}
	if pending := v.pending.Load(); pending != 0 {
		l.Quiet = time.Duration(v.lull.Load())
		if reading := v.reading.Load(); reading != 0 {
			l.Waiting = time.Duration(end - max(pending, reading))
		}
	}
	if c.givenUp.Load() || !c.dead() {
		return l
	}
	if quiet := time.Duration(end - max(v.received.Load(), v.written.Load())); quiet >= l.Quiet {
		l.Quiet, l.Exact = quiet, true
	}
	return l
}

// SetHeartbeat changes Options.Heartbeat, for the next ping and those after it. A
// shorter one takes effect within a quarter of Options.HeartbeatTimeout.
func (c *Conn) SetHeartbeat(d time.Duration) { c.heartbeat.Store(int64(d)) }
