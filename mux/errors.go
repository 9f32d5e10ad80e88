package mux

import (
	"errors"
	"fmt"
)

// Code says why a stream could not be opened or was reset. The values are part
// of the wire format.
type Code uint8

const (
	OK           Code = 0
	Refused      Code = 1  // the target refused the connection
	Unreachable  Code = 2  // no route to the target
	TimedOut     Code = 3  // the target, or an end, did not answer in time
	Unresolvable Code = 4  // the target's name has no address
	Denied       Code = 5  // the policy forbids it
	Limit        Code = 6  // a limit is reached
	NotFound     Code = 7  // no such forward
	Stopping     Code = 8  // the end is shutting down
	Internal     Code = 9  // anything else; the reason says what
	ResetByPeer  Code = 10 // the TCP connection at the other end was reset
	Cancelled    Code = 11 // the stream's user left before it was done
	OverBudget   Code = 12 // unread bytes exceeded the memory budget
	SessionLost  Code = 13 // the session ended under the stream; never on the wire
	Protocol     Code = 14 // the other end broke the protocol
)

var codeNames = [...]string{
	"ok", "refused", "unreachable", "timed out", "unresolvable", "denied", "limit", "not found",
	"stopping", "internal", "reset", "cancelled", "over budget", "session lost", "protocol",
}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// MarshalText makes logs say the code in words.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Error is the end of a stream that was not clean, or of a request to listen.
type Error struct {
	Code   Code
	Reason string // at most 255 bytes, perhaps the peer's words: quote before logging
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Reason
}

// Timeout makes an Error a net.Error, in the manner of net.OpError.
func (e *Error) Timeout() bool { return e.Code == TimedOut }

// Temporary is part of net.Error.
func (e *Error) Temporary() bool { return false }

// CodeOf is the code of the *[Error] in err, and Internal for any other.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

var (
	// ErrGoingAway is returned by Open when the session takes no new streams.
	ErrGoingAway = errors.New("session takes no new streams")
	// ErrClosed ends a session that this side closed.
	ErrClosed = errors.New("session closed")
	// errProtocol ends a session whose peer breaks the protocol.
	errProtocol = errors.New("mux protocol violation")
)

const maxReason = 255

func clip(reason string) string { return reason[:min(len(reason), maxReason)] }
