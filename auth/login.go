package auth

import (
	"net/netip"
	"time"
)

// Presented is what a client shows of itself.
type Presented struct {
	Remote netip.Addr // where it comes from, for the count of failures

	// The Authorization header: a token, or a user and a password, or neither if
	// there is none.
	Bearer         string
	User, Password string
	Garbled        bool // there is one that holds none of these
}

// Login is a credential that was good. Only a Guard makes one.
type Login struct {
	Identity   string    // the name of an Identity, or NAME/SUBJECT of a signed token
	Credential string    // kind and label, for logs: "token laptop"
	Until      time.Time // when the credential ends; zero: it does not

	// valid reports whether the credential still opens the door of d.
	valid func(d *Directory) bool
}
