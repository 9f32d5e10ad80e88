// Package netfault is a TCP relay that misbehaves on command.
//
// The end-to-end tests put a [Relay] between client and server and then cut,
// stall, swallow, damage, delay or slow down what passes. A fault may be set at
// any time and holds for the connections that are open as well as for later
// ones, unless its method says otherwise.
//
// The relay owns every connection it accepted or dialled. [Relay.Close] ends
// them with a reset and returns when all of the relay's goroutines have.
package netfault
