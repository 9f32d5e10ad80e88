package auth

// Identity is somebody who may connect: what opens the door, and what is behind it.
type Identity struct {
	// Name is how logs, limits and sessions know the identity. It is not empty and
	// has no slash in it.
	Name string

	// Credentials of every kind; each of them alone is enough. Several at a time
	// let one follow another without an outage.
	Tokens       []Token
	Passwords    []Password // the user is the identity's name
	Keys         []PublicKey
	Certificates []CertificateName // a certificate has one of them
	Claims       []Claims          // a signed token has all of one of them

	Policy Policy
	Limits Limits
	Shared Limits // of all subjects of signed tokens together; Memory is not looked at
}
