// Command culvert-server is the end of the tunnels of culvert-clients: it dials the
// targets of their -L forwards and listens for their -R forwards.
package main
