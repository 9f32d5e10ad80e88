// Package front is what a stranger sees of a server: its certificates, and the web site
// that answers whatever is not the tunnel's. It knows nothing of tunnels; package
// mux/carrier decides whose a request is.
//
//   - [Certificate] is a pair of files, read again when they change; [ACME] gets
//     certificates from an authority such as Let's Encrypt by itself.
//   - [Site] serves a directory, [Fallback] passes on to a web server.
//
// Nothing here starts a goroutine or opens a socket until it is asked for something.
package front
