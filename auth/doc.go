// Package auth says who a client is and what it may reach: credentials,
// identities and policy. It opens no socket and knows no protocol.
//
// The server agent asks it twice. At login, [Tokens.Authenticate] turns a bearer
// token into an identity; only SHA-256 sums of the tokens stay in memory and
// every comparison costs the same, whether a token is known or not. Later, for
// every single dial and every listener, a [Policy] is asked about the resolved
// address, last of all from net.Dialer.Control and net.ListenConfig.Control. At
// that point an address is a value and no longer text, so its spelling (decimal,
// octal, a trailing dot, IPv4 inside IPv6, a name that resolves to it) cannot
// matter.
//
// All values are immutable once made and safe for concurrent use.
package auth
