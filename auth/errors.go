package auth

import (
	"errors"
	"fmt"
	"net/netip"
)

// Why a client is not let in.
var (
	ErrNoCredential = errors.New("no credential")
	ErrGarbled      = errors.New("an Authorization header that holds no token and no password")
	ErrUnknownToken = errors.New("unknown token")
	ErrPassword     = errors.New("unknown user or wrong password")
	ErrExpired      = errors.New("credential has expired")
	ErrRevoked      = errors.New("credential was taken away")
	ErrNotYet       = errors.New("credential is not yet good")

	ErrNobodys   = errors.New("belongs to no identity")
	ErrAmbiguous = errors.New("belongs to more than one identity")

	ErrUnknownIssuer = errors.New("unknown issuer")
	ErrUnknownKey    = errors.New("unknown key")
	ErrSignature     = errors.New("not signed by a key")
	ErrAudience      = errors.New("meant for somebody else")

	// ErrNoList is an [ErrUnavailable].
	ErrNoList = fmt.Errorf("%w: no revocation list in force", ErrUnavailable)
)

// Why a client is not let in now, with a credential that nobody has looked at.
var (
	// ErrThrottled: its address has failed too often.
	ErrThrottled = errors.New("too many failures from its address")
	// ErrBusy: too many passwords wait to be checked.
	ErrBusy = errors.New("too many passwords to check")
	// ErrUnavailable: what it is checked with cannot be had now, such as the keys of
	// an issuer that is down.
	ErrUnavailable = errors.New("cannot be checked now")
)

// errPassword is a password that is still to be checked.
var errPassword = errors.New("a password")

// ErrNoTokens is returned when a list of tokens that must hold one is empty.
var ErrNoTokens = errors.New("no token in it")

// ErrDenied is what every refusal to dial or to listen wraps.
var ErrDenied = errors.New("denied by policy")

// DeniedError is a refusal of a [Guard]. It matches [ErrDenied].
type DeniedError struct {
	Identity string
	Op       string // "dial" or "listen"
	Addr     netip.AddrPort
	Rule     string // what decided: a rule of the policy, or what about the address is not allowed
	Own      bool   // the address, or the port of a listener, is the server's own, and no rule names it
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", e.Op, e.Addr, ErrDenied, e.Rule)
}

func (e *DeniedError) Unwrap() error { return ErrDenied }
