package link

import (
	"errors"
	"fmt"
)

// Errors that end a link or refuse a handshake.
var (
	// ErrClosed is returned after this side closed the link.
	ErrClosed = errors.New("link closed")
	// ErrExpired ends a link that had no carrier for the resume window.
	ErrExpired = errors.New("resume window passed without a carrier")
	// ErrGone says that the peer does not know the session that was to be
	// resumed: it restarted, or its resume window passed.
	ErrGone = errors.New("session unknown to the server")
	// ErrLimit says that the server has as many sessions as it may have.
	ErrLimit = errors.New("session limit reached")
	// ErrMalformed is a hello or reply that cannot be decoded.
	ErrMalformed = errors.New("malformed handshake")
	// ErrVersion is a hello or reply of another protocol version.
	ErrVersion = errors.New("protocol version not supported")
	// ErrStopping says that the server is shutting down.
	ErrStopping = errors.New("server is stopping")

	// ErrBusy refuses a handshake for now: carriers of its session displace each other
	// too often, its identity shakes hands too often, or the session is just leaving
	// one carrier for another.
	ErrBusy = errors.New("too many handshakes")
	// ErrStale refuses a carrier that comes after the one of a later handshake.
	ErrStale = errors.New("a carrier of a later handshake came first")
	// ErrMute refuses a carrier on which nothing has come after the handshake.
	ErrMute = errors.New("no message after the handshake")

	// ErrOverrun ends a link whose peer has asked for far more answers than it
	// has taken.
	ErrOverrun = errors.New("peer asks for answers and does not take them")

	// ErrDisplaced ends a carrier because another one took its place.
	ErrDisplaced = errors.New("displaced by a newer carrier")
	// ErrReplaced ends a carrier that another one has followed without a break.
	ErrReplaced = errors.New("replaced by a newer carrier")
	// ErrChecksum ends a carrier that delivered a message whose CRC-32C is
	// wrong.
	ErrChecksum = errors.New("message checksum mismatch")
	// ErrProtocol ends a carrier that delivered something the protocol does
	// not allow: a short message, an unknown type, a gap, an acknowledgement
	// of bytes never sent.
	ErrProtocol = errors.New("link protocol violation")
)

// ClosedByPeerError ends a link that the peer closed on purpose.
type ClosedByPeerError struct {
	Reason string // the peer's words, at most 200 bytes; quote before logging
}

func (e *ClosedByPeerError) Error() string { return fmt.Sprintf("closed by peer: %q", e.Reason) }
