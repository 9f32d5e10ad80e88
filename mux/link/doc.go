// Package link carries one ordered byte stream in each direction between two
// peers over a succession of carriers, and loses nothing when a carrier dies.
//
// A [Link] keeps every byte it was given until the peer has acknowledged it.
// When the carrier dies, the client dials another one; both sides say in the
// handshake how much they have received, the rest is sent again, and whoever
// reads and writes the link (the mux) never notices. A link ends when it is
// closed, when the peer closes it, when the peer no longer knows it ([ErrGone])
// or when it has been without a carrier for longer than the resume window
// ([ErrExpired]).
//
//	              Attach                      Close, peer's bye,
//	[detached] ───────────▶ [attached] ──────────────────────▶ [ended]
//	     ▲  │                    │                                ▲
//	     │  └── resume window ───┼────────────────────────────────┘
//	     └──── carrier lost ─────┘
//
// Who calls it: the client side runs [Link.Maintain], which dials, attaches and
// dials again; the server side keeps a [Registry], which an HTTP handler asks
// before each upgrade. The wire format is in mux/PROTOCOL.md.
//
// Invariants:
//   - Data is identified by its offset in the stream. What arrives twice is
//     recognised and dropped; a gap is a broken carrier, never delivered.
//   - At most one carrier is attached. Another one either follows it gently, once it
//     has delivered a message: then the old one is read to its end first, and nothing
//     is sent again. Or it displaces it: then that ends, its goroutines are waited for,
//     and the rest is sent again, so a message in the replay buffer is never rewritten
//     while somebody still sends it. A handshake is numbered and checked before that:
//     an older or a wrong one ends nothing.
//   - Each attachment has a reader and a writer goroutine, which the link joins.
//     Only one goroutine at a time hands messages to the carrier: whoever calls
//     [Link.Send], which never blocks, or the writer, which does when the carrier
//     takes no more.
//   - Received bytes go to the handler at once and are not kept. Unacknowledged
//     ones are bounded by Config.ReplayBuffer, if those who write ask Full.
package link
