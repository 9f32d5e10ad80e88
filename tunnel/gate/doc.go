// Package gate opens the sockets that streams lead to: it dials targets and listens
// for forwards. Every function takes an [auth.Grant], which only an [auth.Guard]
// makes, and reaches the address of the grant and no other.
//
// Nothing else in an agent opens sockets for streams. The linter forbids it, and
// TestNothingGoesAroundTheGate looks at every file of the product; the few that do
// open some stand there, each with the reason why no stream gets around the gate.
package gate
