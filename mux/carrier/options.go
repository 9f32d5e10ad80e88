package carrier

import "time"

// Subprotocol is the WebSocket subprotocol of version 1, and with it the
// version of everything that the messages carry.
const Subprotocol = "culvert.v1"

// Options are what both ends of a carrier are set up with. A zero field means
// its default.
type Options struct {
	// Heartbeat is the time between two pings that this end sends; they keep
	// idle middleboxes open and find dead ones. Default 20 s.
	Heartbeat time.Duration

	// HeartbeatTimeout is how long something that this end has written (a ping
	// or a message) may be followed by nothing at all from the peer before the
	// Conn is dead. Default 10 s.
	HeartbeatTimeout time.Duration

	// MaxMessage is the length in bytes of the largest message that is sent or
	// accepted. Default 128 KiB and 64 bytes.
	MaxMessage int
}

const (
	defaultHeartbeat        = 20 * time.Second
	defaultHeartbeatTimeout = 10 * time.Second
	defaultMaxMessage       = 128<<10 + 64
	defaultHandshakeTimeout = 10 * time.Second
)

func (o Options) withDefaults() Options {
	if o.Heartbeat <= 0 {
		o.Heartbeat = defaultHeartbeat
	}
	if o.HeartbeatTimeout <= 0 {
		o.HeartbeatTimeout = defaultHeartbeatTimeout
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = defaultMaxMessage
	}
	return o
}
