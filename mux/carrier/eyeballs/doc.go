// Package eyeballs connects to a host that has several addresses, of which some may be
// dead: the attempts are staggered and the first connection wins, as in RFC 8305 ("Happy
// Eyeballs"), and the address that worked comes first the next time.
//
// The carrier uses it on the way to a server or a proxy, and the tunnel for the targets of
// streams. It opens no connection itself, and resolves no names.
package eyeballs
