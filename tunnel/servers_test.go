package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/mux/carrier"
)

func TestServersOrder(t *testing.T) {
	now := time.Now()
	s := newServers(4, false)
	want := func(has int, servers ...int) {
		t.Helper()
		if got := s.order(now, has); !slices.Equal(got, servers) {
			t.Errorf("with the session at %d: %v, want %v", has, got, servers)
		}
	}
	want(-1, 0, 1, 2, 3)
	want(2, 2, 0, 1, 3)
	s.failed(1, now, nil)
	now = now.Add(time.Minute)
	s.failed(0, now, nil)
	want(-1, 2, 3, 1, 0) // the oldest failure first
	want(0, 0, 2, 3, 1)  // whoever has the session comes first all the same
	s.worked(0)
	want(-1, 0, 2, 3, 1)
	now = now.Add(failureMemory - time.Minute - 1)
	want(-1, 0, 2, 3, 1)
	now = now.Add(1) // forgotten
	want(-1, 0, 1, 2, 3)
}

func TestServersAtRandom(t *testing.T) {
	now := time.Now()
	s := newServers(4, true)
	s.failed(3, now, nil)
	firsts := make(map[int]int)
	for range 300 {
		order := s.order(now, -1)
		firsts[order[0]]++
		if order[3] != 3 {
			t.Fatalf("%v: the one that failed is not the last", order)
		}
		if order = s.order(now, 3); order[0] != 3 {
			t.Fatalf("%v: the one with the session is not the first", order)
		}
	}
	for i := range 3 {
		if firsts[i] < 50 {
			t.Errorf("of 300 times, server %d comes first %d times", i, firsts[i])
		}
	}
}

// through makes a client's servers those at the addresses.
func through(addrs ...string) func(*ClientConfig) {
	return func(c *ClientConfig) {
		c.Servers = nil
		for _, addr := range addrs {
			c.Servers = append(c.Servers, &url.URL{Scheme: "ws", Host: addr})
		}
	}
}

// A server that is not there is passed over, without a pause.
func TestServerIsPassedOver(t *testing.T) {
	_, live := startServer(t, nil)
	closed := closedPort(t)
	addr, conns := target(t)
	client := startClient(t, "", func(c *ClientConfig) {
		through(closed, live)(c)
		local(addr)(c)
		c.MaxBackoff = time.Hour
	})
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	client.find(t, "level=WARN", `msg="server failed"`, closed)
	client.find(t, `msg="session opened"`, "server="+live)
	if strings.Contains(client.String(), "connect failed") {
		t.Error("it waited")
	}
}

// A client gives up at the start only when no server will have it.
func TestNoServerAtFirst(t *testing.T) {
	_, live := startServer(t, nil)
	closed := closedPort(t)
	err := refusedWith(t, "", func(c *ClientConfig) {
		through(closed, live)(c)
		c.Servers[1].Path = "/elsewhere"
	})
	var all *ServersError
	if !errors.As(err, &all) || len(all.Errs) != 2 || strings.Contains(err.Error(), "\n") {
		t.Fatalf("client ended with %v", err)
	}
	for i, at := range []string{closed, live} {
		if dial, ok := errors.AsType[*carrier.DialError](all.Errs[i]); !ok || dial.Addr != at {
			t.Errorf("error %d is %v", i, all.Errs[i])
		}
	}
	if carrier.Permanent(all.Errs[0]) || !carrier.Permanent(all.Errs[1]) {
		t.Errorf("client ended with %v", err)
	}
}

// When the server of a session fails, new connections go to another one at once,
// and those of the session on as soon as it is back.
func TestFailOver(t *testing.T) {
	_, first := startServer(t, nil)
	_, second := startServer(t, nil)
	p := newPath(t, first)
	addr, conns := target(t)
	client := startClient(t, "", func(c *ClientConfig) {
		through(p.addr, second)(c)
		local(addr)(c)
		remote(addr)(c)
		c.ResumeWindow = time.Hour
	})
	client.listening(t, "remote")
	old := connect(t, client.listening(t, "local"))
	oldFar := within(t, conns, "connection to the target")
	greet(t, old, oldFar)
	p.lead(closedPort(t))
	p.cut()
	client.find(t, `msg="session leaving"`, "its server fails")
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	client.find(t, `msg="session opened"`, "server="+second)
	for strings.Count(client.String(), `forward="remote `) < 2 {
		within(t, client.lines, "log line")
	}

	p.lead(first)
	client.find(t, `msg="session resumed"`, "server="+p.addr)
	exchange(t, old, oldFar)
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	if n := strings.Count(client.String(), `msg="session opened"`); n != 2 {
		t.Errorf("%d sessions", n)
	}
	if strings.Contains(client.String(), `msg="server failed"`) {
		t.Error("the second session tried the first server, whose failure was known")
	}
}

// Two servers may be two ways to the same one: a session goes on over the other.
func TestTwoWaysToOneServer(t *testing.T) {
	_, server := startServer(t, nil)
	_, stranger := startServer(t, nil)
	one, other := newPath(t, server), newPath(t, server)
	addr, conns := target(t)
	client := startClient(t, "", func(c *ClientConfig) {
		through(one.addr, stranger, other.addr)(c)
		local(addr)(c)
		c.ResumeWindow = time.Hour
	})
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	one.lead(closedPort(t))
	one.cut()
	client.find(t, `msg="session resumed"`, "server="+other.addr)
	greet(t, app, far)
	other.cut() // and that is where the session is now
	for strings.Count(client.String(), `msg="session resumed"`) < 2 {
		within(t, client.lines, "log line")
	}
	exchange(t, app, far)
	log := client.String()
	if strings.Contains(log, "session leaving") || strings.Count(log, `msg="session opened"`) != 1 {
		t.Error("the session was given up")
	}
	if n := strings.Count(log, `msg="server failed"`); n != 2 { // one, and the stranger
		t.Errorf("%d servers failed", n)
	}
}

// That the session's own server does not know it is final, whatever others say.
func TestForgottenByItsOwnServer(t *testing.T) {
	_, first := startServer(t, nil)
	_, again := startServer(t, nil)
	_, second := startServer(t, nil)
	p := newPath(t, first)
	addr, conns := target(t)
	client := startClient(t, "", func(c *ClientConfig) {
		through(p.addr, second)(c)
		local(addr)(c)
		c.ResumeWindow = time.Hour
	})
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	p.lead(again)
	p.cut()
	var b [1]byte
	if _, err := app.Read(b[:]); !isReset(err) {
		t.Errorf("application sees %v, want a reset", err)
	}
	client.find(t, `msg="session expired"`)
	for strings.Count(client.String(), `msg="session opened"`) < 2 {
		within(t, client.lines, "log line")
	}
	if strings.Contains(client.String(), "server="+second) {
		t.Error("the other server was used, though the first works")
	}
}

func TestServersErrorIsOneLine(t *testing.T) {
	err := fmt.Errorf("connect: %w", &ServersError{Errs: []error{net.ErrClosed, carrier.ErrUnauthorized}})
	if !errors.Is(err, carrier.ErrUnauthorized) || !errors.Is(err, net.ErrClosed) ||
		err.Error() != "connect: "+net.ErrClosed.Error()+"; "+carrier.ErrUnauthorized.Error() {
		t.Error(err)
	}
}

// A server that has answered with Retry-After is not asked before that time, whoever
// waits for it, and whatever way there is to it.
func TestRetryAfter(t *testing.T) {
	_, live := startServer(t, nil)
	var mu sync.Mutex
	var asked []time.Time
	busy := true
	backend := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: live})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, time.Now())
		refuse := busy
		busy = len(asked) < 2
		mu.Unlock()
		if refuse {
			w.Header().Set("Retry-After", "2")
			http.Error(w, "slow down", http.StatusTooManyRequests)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	defer front.Close()
	addr, conns := target(t)
	client := startClient(t, "", func(c *ClientConfig) {
		through(strings.TrimPrefix(front.URL, "http://"))(c)
		local(addr)(c)
		c.Carrier = carrier.ModeAuto
	})
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	mu.Lock()
	defer mu.Unlock()
	for i := range min(2, len(asked)-1) {
		if pause := asked[i+1].Sub(asked[i]); pause < 2*time.Second {
			t.Errorf("asked again after %v, want 2s at least", pause)
		}
	}
	client.find(t, `msg="connect failed"`, "429 Too Many Requests", "next_attempt=2s")
}

func TestRetryAfterOfSeveralServers(t *testing.T) {
	now := time.Now()
	s := newServers(2, false)
	busy := &carrier.RefusedError{Status: 503, RetryAfter: time.Minute}
	s.failed(0, now, &carrier.DialError{Phase: carrier.PhaseUpgrade, Addr: "a:1", Err: busy})
	s.failed(1, now, errors.New("no route"))
	var later *LaterError
	if err := s.open(0, now.Add(59*time.Second)); !errors.As(err, &later) || later.After != time.Second || !errors.Is(err, busy) {
		t.Errorf("the first server: %v", err)
	}
	for i, at := range []time.Duration{time.Minute, 0} {
		if err := s.open(i, now.Add(at)); err != nil {
			t.Errorf("server %d after %v: %v", i, at, err)
		}
	}
	s.worked(0)
	if err := s.open(0, now); err != nil {
		t.Errorf("a server that worked since: %v", err)
	}
	for _, test := range []struct {
		err  error
		want time.Duration
	}{
		{busy, time.Minute},
		{&LaterError{Err: busy, After: time.Second}, time.Second},
		{&ServersError{Errs: []error{busy, &LaterError{Err: busy, After: time.Second}}}, time.Second},
		{&ServersError{Errs: []error{busy, errors.New("no route")}}, 0},
		{errors.New("no route"), 0},
	} {
		if got := retryAfter(test.err); got != test.want {
			t.Errorf("after %v: %v, want %v", test.err, got, test.want)
		}
	}
}

// A connection that waits for a session asks for a dial now.
func TestWaitingConnectionAsksForADial(t *testing.T) {
	c, journal := newTestClient(t, closedPort(t), func(c *ClientConfig) {
		local("127.0.0.1:1")(c)
		c.RetryInitial = true
	})
	agent := startAgent(t, journal, c.Run)
	paused := func(most time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), most)
		defer cancel()
		c.demand.Pause(ctx, time.Hour, 0)
		return ctx.Err() == nil
	}
	addr := agent.listening(t, "local")
	if paused(10 * time.Millisecond) {
		t.Error("somebody waits before the first connection")
	}
	conn := connect(t, addr)
	if !paused(20 * time.Second) {
		t.Error("nobody waits although there is a connection")
	}
	conn.Close()
}
