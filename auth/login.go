package auth

import (
	"crypto/x509"
	"net/netip"
	"time"
)

// Presented is what a client shows of itself.
type Presented struct {
	Remote netip.Addr // where it comes from, for the count of failures
	// AtOnce says that an error is not held back, however often the address has failed:
	// who waits sees that somebody looks.
	AtOnce bool

	// Key is the public key that the link is sealed with as the client's credential,
	// nil for none. It decides if it is there, and nothing else does.
	Key *[keySize]byte

	// The Authorization header: a token, or a user and a password, or neither if
	// there is none.
	Bearer         string
	User, Password string
	Garbled        bool // there is one that holds none of these

	// Certificates is the client's certificate, whose key the TLS stack has seen it to
	// have, and those that it showed with it; nil for none.
	Certificates []*x509.Certificate
}

// Kind is the kind of credential that p holds, in a word or two, for logs.
func (p Presented) Kind() string {
	switch {
	case p.Key != nil:
		return "key"
	case p.Garbled:
		return "malformed"
	case looksSigned(p.Bearer):
		return "signed token"
	case p.Bearer != "":
		return "token"
	case p.User != "":
		return "password"
	case len(p.Certificates) > 0:
		return "certificate"
	default:
		return "none"
	}
}

// Login is a credential that was good. Only a Guard makes one.
type Login struct {
	Identity   string    // the name of an Identity, or NAME/SUBJECT of a signed token
	Credential string    // kind and label, for logs: "token laptop"
	Until      time.Time // when the credential ends; zero: it does not

	// valid reports whether the credential still opens the door of d.
	valid func(d *Directory) bool
}
