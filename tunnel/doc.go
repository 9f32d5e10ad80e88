// Package tunnel is the two agents: it listens, dials and copies bytes between
// connections and the streams of a session.
//
// [Client.Run] and [Server.Run] do everything and return when all they started
// has returned; the end of their context is a graceful stop. NewClient and
// NewServer only check. The programs in cmd turn a configuration into
// [ClientConfig] and [ServerConfig] and call them, nobody else does.
//
//	local forward    application ─▶ Client listens ─ KindDial ──▶ Server dials ─▶ target
//	remote forward   application ─▶ Server listens ─ KindForward ▶ Client dials ─▶ target
//
// Who owns what:
//   - A connection and its stream belong to one relay, which closes both. It
//     costs two goroutines and holds no buffer while nothing flows.
//   - A session belongs to the goroutine that made it; its streams' handlers
//     are joined before it is forgotten.
//   - A remote listener belongs to the session that asked for it and ends with
//     it, unless a later session of the same identity takes it over.
//
// A server bounds and counts the bytes of every stream, in [metered], which is put around
// it where it is accepted or opened: relays do not know. What one identity uses is a
// [usage]. What is recorded of a session is told to its [account], and of a stream to its
// [entry]; both are nil where there is no audit log.
//
// A client learns from how carriers live and die what the path does to them
// ([learner], [pathLimits]), keeps it in a file ([memory]), and notices when the
// network may be another one ([watch]).
//
// Invariants:
//   - A cut is never a clean end: whatever is not a FIN of the other side
//     becomes a TCP reset.
//   - No accept loop waits for a dial, a stream or a peer.
//   - Every dial and every listen for a client asks the policy, about the
//     address that is then used: [dialer] and [listeners] are the only places.
//   - Every stream at a server counts for an identity ([usage.meter]), and the audit
//     log has its beginning and its end, or why it was refused.
//   - A connection that arrives while there is no session waits for one.
//   - A session is resumed where it was last, or over another way to the same
//     server. While only other servers answer, it takes no new streams.
package tunnel
