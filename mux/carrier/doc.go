// Package carrier is one connection through the middleboxes: an HTTP/1.1
// request that upgrades to a WebSocket, and after that whole binary messages in
// both directions. It knows no sessions and no streams, and nothing of what a
// message means; package link rides on it. Nothing else below tunnel imports
// net/http or the WebSocket library.
//
// The two ends:
//
//   - [Dialer.Dial] makes a carrier as a client. Its errors say which phase
//     failed and what answered; [Permanent] says whether dialling again can
//     help.
//   - [Handler] makes carriers as a server. It is an [http.Handler] that looks
//     like an ordinary web site to anybody without a credential. [Server] is
//     the http.Server around it with the time-outs and limits that an open port
//     needs.
//
// Both give a [Conn]. Its layers, from the top:
//
//	Conn             messages, heartbeats, how it ended; opens what is sealed
//	websocket.Conn   frames (RFC 6455)
//	cork             gathers the frames of one message, and seals; one system call each
//	tls.Conn         with wss only
//	tls.Conn         again, with an https proxy only
//	wire             notes every byte received; gathers TLS records
//	net.Conn         the socket
//
// Where no upgrade passes, the socket is an HTTP pipe: a net.Conn that each end
// makes of plain requests (pipe_dial.go, pipe_accept.go), TLS and all. The server
// takes it for one more connection of the same http.Server. [ModeAuto] finds out
// which way works, and a [Ladder] remembers.
//
// A sealed carrier is encrypted from one end to the other, whoever ends TLS in
// between (sealing.go; package seal is the cryptography). Its handshake is in the
// upgrade, and the server attaches it when the client's first message has come: what
// came before may be a recording.
//
// Invariants:
//
//   - The goroutine that reads never waits for a write: the WebSocket library
//     answers pings and closes while it reads, and those frames only go to
//     memory, from where a goroutine of the Conn sends them.
//   - What waits in memory to be written is bounded by one message and 4 KiB, and
//     with an HTTP pipe by 2 MiB more.
//   - A Conn is judged dead by the silence of the path alone, and never while
//     this side was not reading or not running.
//   - Whatever a peer sends can end its own Conn, nothing else.
//   - Every Conn has two goroutines, and they end when it does: at the first
//     error, [Conn.Abort], or [Conn.Close], which joins them. Those of an HTTP pipe
//     at the client, three, may take a second more to tell the server.
package carrier
