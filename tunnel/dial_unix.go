//go:build unix

package tunnel

import (
	"syscall"

	"culvert/mux"
)

// errnoCodes are the system's errors of a connect.
var errnoCodes = map[syscall.Errno]mux.Code{
	syscall.ECONNREFUSED:  mux.Refused,
	syscall.ECONNRESET:    mux.Refused,
	syscall.EHOSTUNREACH:  mux.Unreachable,
	syscall.ENETUNREACH:   mux.Unreachable,
	syscall.EHOSTDOWN:     mux.Unreachable,
	syscall.ENETDOWN:      mux.Unreachable,
	syscall.EADDRNOTAVAIL: mux.Unreachable,
	syscall.EAFNOSUPPORT:  mux.Unreachable,
	syscall.EACCES:        mux.Unreachable,
	syscall.EPERM:         mux.Unreachable,
	syscall.EINVAL:        mux.Unreachable,
	syscall.ETIMEDOUT:     mux.TimedOut,
	syscall.EMFILE:        mux.Limit,
	syscall.ENFILE:        mux.Limit,
	syscall.ENOBUFS:       mux.Limit,
	syscall.ENOMEM:        mux.Limit,
}

// errnoInUse is the system's error of a listen on an address that is taken.
const errnoInUse = syscall.EADDRINUSE
