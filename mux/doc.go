// Package mux carries many streams over one link: a session.
//
// Each end opens streams with a [Header] that says what for, and accepts those
// of the other. A stream is TCP-like: bytes in order, back-pressure, half-close
// in each direction, and a reset with a reason. Its bytes travel as frames of
// smux (version 2), which this package alone imports. What smux does not have
// travels on a control stream that the client opens first: resets, windows that
// grow with what a reader drains, requests to listen, and the announcement that
// an end is about to stop. The wire format is in PROTOCOL.md beside this file.
//
// Who calls it: the tunnel makes a session with [Client] or [Server] on a
// [Link], opens, accepts and relays streams, and closes the session.
//
// Invariants:
//   - Nobody blocks anybody: what is received is always taken, whatever a
//     stream's reader does. A stream's sender is bounded by the window that its
//     reader granted; all bytes received and unread are bounded by the session's
//     and the process's budget, past which the stream that is stuck for longest
//     is reset.
//   - A stream ends cleanly only if both ends closed their direction. Anything
//     else, the session's end included, is an [Error] on both ends. The sender
//     of a reset keeps its end open until the peer has confirmed it, so that a
//     reset is never taken for an end of file.
//   - What the peer sends is policed before anybody else sees it: stream
//     identifiers, number of streams, windows.
//   - Data moves on the goroutine that has it. Who writes to a stream puts the
//     frames into the link when it is the stream's turn, and sends them; who
//     receives them writes to where the stream is delivered. Another goroutine
//     comes in only where one would have to wait. smux opens and closes streams.
package mux
