// Package reserve keeps the last file descriptors of a process for what it must be able to
// do however many connections there are: read its files again, write its logs, answer its
// operator. Whoever opens or accepts a connection for somebody else asks it, and gives the
// connection up if it has one of the last descriptors.
//
// That is enough where the system gives out the lowest descriptor that is free, as on Unix.
// Elsewhere the package keeps nothing.
package reserve
