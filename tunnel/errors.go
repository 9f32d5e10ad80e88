package tunnel

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"culvert/mux"
)

// Errors of this package.
var (
	// ErrConfig is wrapped by everything NewClient and NewServer complain of.
	ErrConfig = errors.New("invalid configuration")
	// ErrListen is wrapped by the error of a forward that could not listen at
	// the start, here (local) or at the server (remote).
	ErrListen = errors.New("cannot listen")

	errStopping = errors.New("stopping")

	errNoSession = errors.New("no session to the peer")
	errNoCarrier = errors.New("no carrier to probe")
)

// ServersError is why none of several servers could be used, in the order in which
// they were tried.
type ServersError struct {
	Errs []error // one of each server, mostly a [*carrier.DialError]
}

// Error is one line.
func (e *ServersError) Error() string {
	texts := make([]string, len(e.Errs))
	for i, err := range e.Errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap makes the error everything that one of the servers' is. Ask each of Errs
// where all of them count, as whether an error is permanent.
func (e *ServersError) Unwrap() []error { return e.Errs }

// LaterError is why a server was not dialled: its last answer asked to be left alone
// for some time, which is not over.
type LaterError struct {
	Err   error         // the last answer
	After time.Duration // from now on
}

func (e *LaterError) Error() string {
	return fmt.Sprintf("not asked again for %v: %v", e.After.Round(time.Second), e.Err)
}

func (e *LaterError) Unwrap() error { return e.Err }

// TargetError says why a target could not be reached.
type TargetError struct {
	Code   mux.Code
	Reason string // short, fit for the peer
	Err    error  // the cause, for the log only; may be nil
}

func (e *TargetError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return e.Reason
}

func (e *TargetError) Unwrap() error { return e.Err }

// listenError is the client's view of a refused remote listen.
func listenError(f Forward, err error) error {
	return fmt.Errorf("%w for remote forward %s: %w", ErrListen, f, err)
}

// verdict is the code and reason in err: those of a failed open or a reset, or
// fallback and err's own words. Nothing is mux.OK.
func verdict(err error, fallback mux.Code) (mux.Code, string) {
	if err == nil {
		return mux.OK, ""
	}
	var e *mux.Error
	if errors.As(err, &e) {
		return e.Code, e.Reason
	}
	var t *TargetError
	if errors.As(err, &t) {
		return t.Code, t.Reason
	}
	return fallback, err.Error()
}
