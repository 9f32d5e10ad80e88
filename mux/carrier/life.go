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
	// something was sent then and there was no answer: the path may have been
	// dead for any part of that time.
	Quiet time.Duration
	Exact bool
}

// Life returns what c has seen so far.
func (c *Conn) Life() Life {
	v := c.cork.vitals
	end := v.ended.Load()
	if end == 0 {
		end = v.now()
	}
	l := Life{Age: time.Duration(end), Survived: time.Duration(v.survived.Load())}
	if v.pending.Load() == 0 {
		l.Quiet, l.Exact = time.Duration(end-max(v.received.Load(), v.written.Load())), true
	} else {
		l.Quiet = time.Duration(v.lull.Load())
	}
	return l
}

// SetHeartbeat changes Options.Heartbeat, for the next ping and those after it. A
// shorter one takes effect within a quarter of Options.HeartbeatTimeout.
func (c *Conn) SetHeartbeat(d time.Duration) { c.heartbeat.Store(int64(d)) }
