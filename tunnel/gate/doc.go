// Package gate opens the sockets that streams lead to: it dials targets and listens
// for forwards. Every function takes an [auth.Grant], which only an [auth.Guard]
// makes, and reaches the address of the grant and no other. Nothing else in an agent
// dials or listens for streams; a rule of the linter sees to that.
package gate
