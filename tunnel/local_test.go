package tunnel

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"culvert/test/thirdparty"
)

// freePort is a port of loopback where nobody listens.
func freePort(t testing.TB) int {
	t.Helper()
	port, err := strconv.Atoi(thirdparty.FreePort(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Forwards come and go, and what does not concern a connection does not touch it.
func TestSetForwards(t *testing.T) {
	_, at := startServer(t, nil)
	one, toOne := target(t)
	two, toTwo := target(t)
	first, second := Forward{Port: freePort(t), Target: one}, Forward{Port: freePort(t), Target: one}
	back := Forward{Port: freePort(t), Target: one}
	to := func(f Forward, target string) Forward { f.Target = target; return f }
	c, journal := newTestClient(t, at, func(c *ClientConfig) { c.Local, c.Remote = []Forward{first}, []Forward{back} })
	client := startAgent(t, journal, c.Run)

	// use connects through a forward and returns both ends.
	use := func(f Forward, conns <-chan *net.TCPConn) (app, far *net.TCPConn) {
		t.Helper()
		app = connect(t, bindAddress(f.Bind, f.Port))
		far = within(t, conns, "connection to the target")
		greet(t, app, far)
		return app, far
	}
	set := func(local, remote []Forward) {
		t.Helper()
		if err := c.SetForwards(t.Context(), local, remote); err != nil {
			t.Fatal(err)
		}
	}
	closed := func(f Forward) {
		t.Helper()
		if c, err := net.Dial("tcp", bindAddress(f.Bind, f.Port)); err == nil {
			c.Close()
			t.Errorf("%s still listens", f)
		}
	}
	client.find(t, `msg="forward listening"`, `forward="local `+first.String())
	client.find(t, `msg="forward listening"`, `forward="remote `+back.String())
	app, far := use(first, toOne)
	appBack, farBack := use(back, toOne)

	// Some come.
	other := Forward{Port: freePort(t), Target: two}
	set([]Forward{first, second}, []Forward{back, other})
	use(second, toOne)
	client.find(t, `msg="forward listening"`, `forward="remote `+other.String())
	use(other, toTwo)

	// Targets change, and nobody who connects meanwhile is turned away.
	set([]Forward{to(first, two), second}, []Forward{to(back, two), other})
	use(first, toTwo)
	use(back, toTwo)
	// What came in from the server has a target that is not allowed any more.
	for _, c := range []*net.TCPConn{appBack, farBack} {
		if _, err := io.ReadAll(c); !isReset(err) {
			t.Errorf("%v sees %v, want a reset", c.LocalAddr(), err)
		}
	}

	// Some go, and connections from here do not.
	set([]Forward{second}, []Forward{other})
	closed(first)
	client.find(t, `msg="forward closed"`, `forward="remote `+to(back, two).String())
	for {
		// The server closes its listener when it hears of it.
		if c, err := net.Dial("tcp", bindAddress(back.Bind, back.Port)); err != nil {
			break
		} else {
			c.Close()
		}
	}

	// An address is taken over by another forward.
	everywhere := Forward{Bind: "0.0.0.0", Port: second.Port, Target: two}
	set([]Forward{everywhere}, nil)
	use(everywhere, toTwo)

	// What fails changes nothing.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := Forward{Port: int(netip.MustParseAddrPort(taken.Addr().String()).Port()), Target: one}
	if err := c.SetForwards(t.Context(), []Forward{first, busy}, nil); !errors.Is(err, ErrListen) {
		t.Errorf("a taken address: %v", err)
	}
	if err := c.SetForwards(t.Context(), []Forward{{Port: -1}}, nil); !errors.Is(err, ErrConfig) {
		t.Errorf("no forward: %v", err)
	}
	closed(first)
	use(everywhere, toTwo)

	// All is as it was for who was there first.
	exchange(t, app, far)
	client.stop()
	if err := client.ended(t); err != nil {
		t.Error(err)
	}
	if err := c.SetForwards(t.Context(), nil, nil); !errors.Is(err, errStopping) {
		t.Errorf("after the end: %v", err)
	}
	if n := strings.Count(client.String(), `msg="session opened"`); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// A forward that the server refuses at first is asked for until it is taken away.
func TestSetForwardsThatAreRefused(t *testing.T) {
	_, at := startServer(t, nil)
	addr, _ := target(t)
	c, journal := newTestClient(t, at, nil)
	client := startAgent(t, journal, c.Run)
	client.find(t, `msg="session opened"`)
	refused := Forward{Bind: "203.0.113.1", Port: 80, Target: addr}
	if err := c.SetForwards(t.Context(), nil, []Forward{refused}); err != nil {
		t.Fatal(err)
	}
	client.find(t, `level=WARN msg="forward not listening"`, refused.String())
	good := Forward{Target: addr}
	if err := c.SetForwards(t.Context(), nil, []Forward{good}); err != nil {
		t.Fatal(err)
	}
	client.find(t, `msg="forward listening"`, `forward="remote `+good.String())
	client.stop()
	if err := client.ended(t); err != nil {
		t.Error(err)
	}
}
