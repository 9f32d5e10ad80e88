package auth

import (
	"errors"
	"fmt"
	"net/netip"
)

// Why a client is not let in.
var (
	ErrNoCredential = errors.New("no credential")
	ErrUnknownToken = errors.New("unknown token")
	ErrUnknownKey   = errors.New("unknown key")
	ErrExpired      = errors.New("credential has expired")
	ErrRevoked      = errors.New("credential was taken away")
)

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
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", e.Op, e.Addr, ErrDenied, e.Rule)
}

func (e *DeniedError) Unwrap() error { return ErrDenied }
