// Package attack has tests that attack a server, with a client of their own: raw TCP,
// the text of the upgrade request, and frames and messages byte by byte as
// mux/PROTOCOL.md has them. It shares no code with the client that users have, so
// that nothing which that one would never send goes untested.
package attack
