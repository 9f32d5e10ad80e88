package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/link"
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
	keyWaiting  = "waiting_for"
	keyAfter    = "after"
	keyLimit    = "limit"
	keyLeftOut  = "left_out"
	keyCarrier  = "carrier"
	keySealed   = "sealed"
	keySent     = "sent_bytes"
	keyReceived = "received_bytes"
	keyTrip     = "round_trip"
	keyForwards = "forwards"
)

// events is a logger for what happens to connections and sessions.
type events struct {
	*slog.Logger
	connections slog.Level // of what happens to each connection
}

func newEvents(s Settings) events {
	e := events{s.Logger, slog.LevelDebug}
	if s.LogConnections {
		e.connections = slog.LevelInfo
	}
	return e
}

func (e events) with(args ...any) events { return events{e.With(args...), e.connections} }

// streamOpened is told that a connection has reached its target, and streamClosed how
// it ended.
func (e events) streamOpened(r *relay, session, target string) {
	if ctx := context.Background(); e.Enabled(ctx, e.connections) {
		e.Log(ctx, e.connections, "stream opened", keySession, session, keyStream, r.stream.ID(), keyTarget, target,
			keyRemote, r.conn.RemoteAddr().String())
	}
}

func (e events) streamClosed(r *relay, session, target string) {
	ended := endedClosed
	if reset, ok := errors.AsType[*mux.Error](context.Cause(r.stream.Context())); ok {
		ended = reset.Code.String()
	}
	e.Log(context.Background(), e.connections, "stream closed", keySession, session, keyStream, r.stream.ID(), keyTarget, target,
		keyEnded, ended, keySent, r.sent, keyReceived, r.received)
}

// carrierAttrs says what carries a session, and how if that is not as usual.
func carrierAttrs(c link.Carrier) []any {
	attrs := []any{keyRemote, c.RemoteAddr()}
	on, ok := c.(*carrier.Conn)
	if ok && on.Proxy() != "" {
		attrs = append(attrs, keyProxy, on.Proxy())
	}
	if ok && on.Mode() != carrier.ModeWebSocket {
		attrs = append(attrs, keyCarrier, string(on.Mode()))
	}
	if ok && on.Sealed() {
		attrs = append(attrs, keySealed, true)
	}
	return attrs
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
