// Package auth says who a client is and what it may reach: credentials,
// identities and policy. It opens no socket and knows no protocol.
//
// A [Directory] is who may connect and what each may do; it is immutable. A [Guard]
// has one in force and is asked: at login, [Guard.Authenticate] turns what a client
// shows into a [Login]; later, for every single dial and every listener,
// [Guard.Dial] and [Guard.Listen] turn a resolved address into a [Grant]. Package
// tunnel/gate opens sockets for grants and for nothing else, and only a guard makes
// them: there is no way around it. An address is a value by then and no longer text,
// so its spelling (decimal, octal, a trailing dot, IPv4 inside IPv6, a name that
// resolves to it) cannot matter.
//
// What a client shows is of one kind, and never tried as another: a token of an
// identity's own, a token that an [Issuer] has signed, or a certificate of one of
// [ClientCAs]. Keys of issuers come from a [KeySource]; package auth/jwks has one that
// fetches them.
//
// All methods are safe for concurrent use.
package auth
