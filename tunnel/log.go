package tunnel

import (
	"log/slog"
	"sync"
	"time"
)

// Keys of log attributes.
const (
	keySession  = "session"
	keyStream   = "stream"
	keyClient   = "client"
	keyServer   = "server"
	keyRemote   = "remote"
	keyProxy    = "proxy"
	keyTarget   = "target"
	keyForward  = "forward"
	keyFrom     = "from_session"
	keyAddress  = "address"
	keyCode     = "code"
	keyReason   = "reason"
	keyError    = "error"
	keyNext     = "next_attempt"
	keyLimit    = "limit"
	keySent     = "sent_bytes"
	keyReceived = "received_bytes"
)

// events is a logger for what happens to connections and sessions.
type events struct{ *slog.Logger }

func (e events) with(args ...any) events { return events{e.With(args...)} }

func (e events) streamClosed(r *relay, session, target string) {
	e.Debug("stream closed", keySession, session, keyStream, r.stream.ID(), keyTarget, target,
		keySent, r.sent, keyReceived, r.received)
}

// every lets one event through in each interval, for what a peer can cause as
// often as it likes.
type every struct {
	interval time.Duration

	mu   sync.Mutex
	last time.Time
}

func (e *every) now() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if !e.last.IsZero() && now.Sub(e.last) < e.interval {
		return false
	}
	e.last = now
	return true
}
