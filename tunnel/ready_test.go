package tunnel

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

// One line says when a client is of use: with the server, how long that takes to answer,
// and where each forward listens.
func TestReady(t *testing.T) {
	_, at := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, at, func(c *ClientConfig) {
		c.Local = []Forward{{Bind: "127.0.0.1", Target: addr}}
		c.Remote = []Forward{{Bind: "127.0.0.1", Target: addr}, {Bind: "127.0.0.1", Port: 0, Target: "127.0.0.1:9"}}
	})
	ready := client.find(t, "level=INFO", "msg=ready", "server="+at, "carrier=websocket", "round_trip=", "forwards=", "-L 127.0.0.1:", "-R 127.0.0.1:", " to "+addr, " to 127.0.0.1:9")
	local := client.listening(t, "local")
	if !strings.Contains(ready, "-L "+local+" to "+addr) {
		t.Errorf("%s does not say that it listens at %s", ready, local)
	}
	if first, _, _ := strings.Cut(client.String(), "msg=ready"); strings.Count(first, `msg="forward listening"`) != 3 {
		t.Errorf("ready before every forward listens:\n%s", first)
	}
	exchange(t, connect(t, local), within(t, conns, "connection to the target"))
}

// A client is not ready while the server refuses a forward, and is when it does not any
// more.
func TestNotReady(t *testing.T) {
	_, at := startServer(t, nil)
	free := freePort(t)
	taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(free)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	client := startClient(t, at, func(c *ClientConfig) {
		c.Remote = []Forward{{Bind: "127.0.0.1", Port: free, Target: "127.0.0.1:9"}}
		c.RetryInitial = true
	})
	client.find(t, `msg="forward not listening"`)
	if strings.Contains(client.String(), "msg=ready") {
		t.Error("ready while a forward does not listen")
	}
	taken.Close()
	client.find(t, "msg=ready", "-R "+taken.Addr().String()+" to 127.0.0.1:9")
}

// Connections are logged at debug, or at info if the user wants to see them, by both
// agents.
func TestLogConnections(t *testing.T) {
	for level, on := range map[string]bool{"DEBUG": false, "INFO": true} {
		t.Run(level, func(t *testing.T) {
			server, at := startServer(t, func(c *ServerConfig) { c.LogConnections = on })
			addr, conns := target(t)
			client := startClient(t, at, func(c *ClientConfig) {
				local(addr)(c)
				c.LogConnections = on
			})
			app := connect(t, client.listening(t, "local"))
			peer := within(t, conns, "connection to the target")
			greet(t, app, peer)
			for _, agent := range []*agent{client, server} {
				agent.find(t, "level="+level, `msg="stream opened"`, "target="+addr, "remote=127.0.0.1:")
			}
			app.SetLinger(0)
			app.Close()
			for _, agent := range []*agent{client, server} {
				agent.find(t, "level="+level, `msg="stream closed"`, "target="+addr, "ended=reset", "sent_bytes=", "received_bytes=")
			}
		})
	}
}
