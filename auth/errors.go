package auth

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrUnknownToken is returned for a credential that belongs to no identity.
var ErrUnknownToken = errors.New("unknown token")

// ErrNoTokens is returned when a list of tokens that must hold one is empty.
var ErrNoTokens = errors.New("no token in it")

// ErrDenied is what every refusal of a [Policy] wraps.
var ErrDenied = errors.New("denied by policy")

// DeniedError is a refusal of the built-in policy. It matches [ErrDenied].
type DeniedError struct {
	Identity string
	Op       string // "dial" or "listen"
	Addr     netip.AddrPort
	Rule     string // what about the address is not allowed
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", e.Op, e.Addr, ErrDenied, e.Rule)
}

func (e *DeniedError) Unwrap() error { return ErrDenied }
