package auth

import (
	"net/netip"
	"time"
)

// Presented is what a client shows of itself.
type Presented struct {
	Remote netip.Addr // where it comes from, for the count of failures
	Bearer string     // token of the Authorization header, "" for none

	// Key is the public key that the link is sealed with as the client's credential,
	// nil for none. It decides if it is there, and nothing else does.
	Key *[keySize]byte
}

// Login is a credential that was good. Only a Guard makes one.
type Login struct {
	Identity   string    // the name of an Identity, or NAME/SUBJECT of a signed token
	Credential string    // kind and label, for logs: "token laptop"
	Until      time.Time // when the credential ends; zero: it does not

	// valid reports whether the credential still opens the door of d.
	valid func(d *Directory) bool
}
