package tunnel

import (
	"syscall"

	"culvert/mux"
)

// errnoCodes are the system's errors of a connect, Winsock's WSAE numbers.
var errnoCodes = map[syscall.Errno]mux.Code{
	10061: mux.Refused,     // WSAECONNREFUSED
	10054: mux.Refused,     // WSAECONNRESET
	10065: mux.Unreachable, // WSAEHOSTUNREACH
	10051: mux.Unreachable, // WSAENETUNREACH
	10064: mux.Unreachable, // WSAEHOSTDOWN
	10050: mux.Unreachable, // WSAENETDOWN
	10049: mux.Unreachable, // WSAEADDRNOTAVAIL
	10047: mux.Unreachable, // WSAEAFNOSUPPORT
	10013: mux.Unreachable, // WSAEACCES
	10060: mux.TimedOut,    // WSAETIMEDOUT
	10024: mux.Limit,       // WSAEMFILE
	10055: mux.Limit,       // WSAENOBUFS
}

// errnoInUse is the system's error of a listen on an address that is taken.
const errnoInUse = syscall.Errno(10048) // WSAEADDRINUSE
