package tunnel

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/auth"
)

// bothLoopbacks returns the two addresses of localhost with the port of addr.
func bothLoopbacks(t *testing.T, addr string) []string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
}

// A forward at localhost, or without a bind address, listens at both loopback addresses, at
// one port, and is one forward in the log: locally and at the server, with a port that was
// asked for and with one that the system chose.
func TestLocalhostIsTwoAddresses(t *testing.T) {
	for _, bind := range []string{"", "localhost", "LOCALHOST"} {
		for _, port := range []int{0, freePort(t)} {
			for _, kind := range []string{"local", "remote"} {
				t.Run(kind+" "+bind+":"+strconv.Itoa(port), func(t *testing.T) {
					_, at := startServer(t, nil)
					addr, conns := target(t)
					client := startClient(t, at, func(c *ClientConfig) {
						f := []Forward{{Bind: bind, Port: port, Target: addr}}
						if kind == "local" {
							c.Local = f
						} else {
							c.Remote = f
						}
					})
					for _, entrance := range bothLoopbacks(t, client.listening(t, kind)) {
						exchange(t, connect(t, entrance), within(t, conns, "connection by "+entrance))
					}
					if n := strings.Count(client.String(), `msg="forward listening"`); n != 1 {
						t.Errorf("%d lines for one forward", n)
					}
				})
			}
		}
	}
}

// An address of 127.0.0.1 alone stays one.
func TestOneLoopbackAddress(t *testing.T) {
	_, at := startServer(t, nil)
	client := startClient(t, at, func(c *ClientConfig) { c.Local = []Forward{{Bind: "127.0.0.1", Target: "127.0.0.1:9"}} })
	if conn, err := net.Dial("tcp", bothLoopbacks(t, client.listening(t, "local"))[1]); err == nil {
		conn.Close()
		t.Error("it listens at ::1, too")
	}
}

// A reload that changes the target alone keeps both listeners, and one that removes the
// forward closes both.
func TestReloadOfLocalhost(t *testing.T) {
	for _, kind := range []string{"local", "remote"} {
		t.Run(kind, func(t *testing.T) {
			_, at := startServer(t, nil)
			first, firstConns := target(t)
			second, secondConns := target(t)
			port := freePort(t)
			set := func(targets ...string) (local, remote []Forward) {
				for _, addr := range targets {
					f := Forward{Bind: "localhost", Port: port, Target: addr}
					if kind == "local" {
						local = append(local, f)
					} else {
						remote = append(remote, f)
					}
				}
				return local, remote
			}
			c, journal := newTestClient(t, at, func(c *ClientConfig) { c.Local, c.Remote = set(first) })
			client := startAgent(t, journal, c.Run)
			entrances := bothLoopbacks(t, client.listening(t, kind))
			for _, entrance := range entrances {
				exchange(t, connect(t, entrance), within(t, firstConns, "connection to the first target"))
			}
			l, r := set(second)
			if err := c.SetForwards(t.Context(), l, r); err != nil {
				t.Fatal(err)
			}
			for _, entrance := range entrances {
				exchange(t, connect(t, entrance), within(t, secondConns, "connection to the second target"))
			}
			if err := c.SetForwards(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
			client.find(t, `msg="forward closed"`)
			for _, entrance := range entrances {
				for deadline := time.Now().Add(20 * time.Second); ; {
					conn, err := net.Dial("tcp", entrance)
					if err != nil {
						break
					}
					conn.Close()
					if time.Now().After(deadline) {
						t.Fatalf("%s is still open", entrance)
					}
				}
			}
		})
	}
}

// The next session of a client takes both listeners over.
func TestTakeOverOfLocalhost(t *testing.T) {
	_, at := startServer(t, nil)
	addr, conns := target(t)
	forward := func(c *ClientConfig) { c.Remote = []Forward{{Bind: "localhost", Port: 0, Target: addr}} }
	p := newPath(t, at)
	first := startClient(t, p.addr, forward)
	entrances := bothLoopbacks(t, first.listening(t, "remote"))
	p.lead(closedPort(t))
	p.cut()
	port, _ := strconv.Atoi(entrances[0][strings.LastIndexByte(entrances[0], ':')+1:])
	second := startClient(t, at, func(c *ClientConfig) {
		c.Remote = []Forward{{Bind: "localhost", Port: port, Target: addr}}
	})
	second.listening(t, "remote")
	for _, entrance := range entrances {
		exchange(t, connect(t, entrance), within(t, conns, "connection by "+entrance))
	}
}

// Where one of the two cannot be had, the other one is enough: the policy allows one, or
// somebody else listens there.
func TestHalfOfLocalhost(t *testing.T) {
	t.Run("taken", func(t *testing.T) {
		port := freePort(t)
		taken, err := net.Listen("tcp", net.JoinHostPort("::1", strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		_, at := startServer(t, nil)
		client := startClient(t, at, func(c *ClientConfig) { c.Local = []Forward{{Bind: "localhost", Port: port, Target: "127.0.0.1:9"}} })
		client.find(t, "level=WARN", `msg="forward listens at one address of localhost only"`, "address=127.0.0.1:"+strconv.Itoa(port))
		if got := client.listening(t, "local"); got != "127.0.0.1:"+strconv.Itoa(port) {
			t.Errorf("it listens at %s", got)
		}
	})
	t.Run("policy", func(t *testing.T) {
		rule, err := auth.ParseRule("allow 127.0.0.1:*")
		if err != nil {
			t.Fatal(err)
		}
		d, err := auth.NewDirectory(auth.DirectoryConfig{Anybody: &auth.Identity{Policy: auth.Policy{Listen: []auth.Rule{rule}}}})
		if err != nil {
			t.Fatal(err)
		}
		_, at := startServer(t, func(c *ServerConfig) { c.Guard = auth.NewGuard(d) })
		addr, conns := target(t)
		client := startClient(t, at, func(c *ClientConfig) {
			c.Credential = nil
			c.Remote = []Forward{{Bind: "localhost", Target: addr}}
		})
		entrances := bothLoopbacks(t, client.listening(t, "remote"))
		exchange(t, connect(t, entrances[0]), within(t, conns, "connection"))
		if conn, err := net.Dial("tcp", entrances[1]); err == nil {
			conn.Close()
			t.Error("it listens at ::1, which the policy does not allow")
		}
	})
}

// What is taken by one session's localhost is refused to another at either address.
func TestLocalhostConflicts(t *testing.T) {
	_, at := startServer(t, nil)
	client := startClient(t, at, func(c *ClientConfig) { c.Remote = []Forward{{Bind: "localhost", Target: "127.0.0.1:9"}} })
	for _, entrance := range bothLoopbacks(t, client.listening(t, "remote")) {
		addr := netip.MustParseAddrPort(entrance)
		other := startClient(t, at, func(c *ClientConfig) {
			c.Remote = []Forward{{Bind: addr.Addr().String(), Port: int(addr.Port()), Target: "127.0.0.1:9"}}
			c.RetryInitial = true
		})
		other.find(t, `msg="forward not listening"`, inUseByAnother)
	}
}
