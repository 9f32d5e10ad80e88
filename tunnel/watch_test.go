package tunnel

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
)

func TestWatch(t *testing.T) {
	const here, there = "192.0.2.1%", "198.51.100.7%"
	type step struct {
		slept time.Duration // not run, apart from the second between two looks
		addr  string        // of the server
		route string
		woken bool
	}
	for name, steps := range map[string][]step{
		"nothing":           {{0, "", "", false}, {0, "s:1", here, false}, {0, "s:1", here, false}},
		"asleep":            {{0, "s:1", here, false}, {time.Minute, "s:1", here, true}, {0, "s:1", here, false}},
		"a short nap":       {{0, "s:1", here, false}, {watchJump + 1, "s:1", here, true}},
		"the clock was set": {{0, "s:1", here, false}, {-time.Hour, "s:1", here, false}, {0, "s:1", here, false}},
		"asleep, no server": {{0, "", "", false}, {time.Minute, "", "", true}},
		"another address":   {{0, "s:1", here, false}, {0, "s:1", there, true}, {0, "s:1", there, false}},
		"the route is lost": {{0, "s:1", here, false}, {0, "s:1", "", false}, {0, "s:1", "", false}},
		"and there again":   {{0, "s:1", here, false}, {0, "s:1", "", false}, {0, "s:1", here, true}, {0, "s:1", here, false}},
		"another server":    {{0, "s:1", here, false}, {0, "s:2", there, false}, {0, "s:1", here, false}},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now().Round(0)
			routes := map[string]string{} // by server
			w := &watch{now: func() time.Time { return now }, route: func(addr string) string { return routes[addr] }}
			for i, s := range steps {
				// Without a reading of the program's clock, a time that the program
				// has not run looks like one of watchGap.
				gap := s.slept
				if gap > 0 {
					gap = watchGap
				}
				now = now.Add(time.Second + gap)
				routes[s.addr] = s.route
				if changed := w.look(s.addr); (changed != "") != s.woken {
					t.Errorf("step %d: %q, want woken: %v", i, changed, s.woken)
				}
			}
		})
	}
}

// On another network the name of the server may have another address as well.
func TestWatchBothChange(t *testing.T) {
	route := "192.0.2.1%"
	w := &watch{now: time.Now, route: func(string) string { return route }}
	w.look("s:1")
	route = "198.51.100.7%"
	if w.look("s:2") != otherRoute {
		t.Error("it is not seen that the route has changed")
	}
	if changed := w.look("s:2"); changed != "" {
		t.Errorf("%q again", changed)
	}
}

// A client that waits to dial again does so at once when there is a way again.
func TestWakeEndsTheWait(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	p := newPath(t, server)
	addr, conns := target(t)
	var route atomic.Value
	route.Store("here")
	c, journal := newTestClient(t, p.addr, func(cfg *ClientConfig) {
		local(addr)(cfg)
		cfg.MaxBackoff = time.Hour
	})
	looked := make(chan struct{}, 1)
	c.newWatch = func() *watch {
		return &watch{now: time.Now, route: func(string) string {
			from := route.Load().(string)
			select {
			case looked <- struct{}{}:
			default:
			}
			return from
		}}
	}
	client := startAgent(t, journal, c.Run)
	app := connect(t, client.listening(t, "local"))
	greet(t, app, within(t, conns, "connection to the target"))
	within(t, looked, "look at the route before it changes")

	nowhere := listenLoopback(t)
	nowhere.Close()
	p.lead(nowhere.Addr().String())
	p.cut()
	client.find(t, "session lost")
	route.Store("")
	// The waits grow; one of some seconds is long enough to see that it is ended.
	for long := false; !long; {
		for line := range strings.Lines(journal.String()) {
			_, next, ok := strings.Cut(strings.TrimSpace(line), "next_attempt=")
			d, err := time.ParseDuration(next)
			long = long || ok && err == nil && d > 3*time.Second
		}
		if !long {
			<-journal.lines
		}
	}
	p.lead(server)
	start := time.Now()
	route.Store("there")
	client.find(t, "session resumed")
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("resumed after %v, want within two seconds", took)
	}
	client.find(t, "network changed")
}

// The last of what goes over a carrier is an acknowledgement, which nobody answers.
// Such a carrier is not taken for a dead one.
func TestQuietAfterTraffic(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, local(addr))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	<-time.After(1500 * time.Millisecond) // quiet
	greet(t, app, far)
	<-time.After(5 * time.Second)
	if strings.Contains(client.String(), "session lost") {
		t.Error("the carrier was lost")
	}
	exchange(t, app, far)
}

func TestProbeTime(t *testing.T) {
	for _, tt := range []struct{ limit, roundTrip, want time.Duration }{
		{wakeProbe, 0, wakeProbe},
		{wakeProbe, 100 * time.Millisecond, wakeProbe},
		{wakeProbe, 600 * time.Millisecond, 1800 * time.Millisecond},
		{lateProbe, time.Minute, longestProbe},
	} {
		if got := probeTime(tt.limit, tt.roundTrip); got != tt.want {
			t.Errorf("%v for round trips of %v, want %v", got, tt.roundTrip, tt.want)
		}
	}
}

// A carrier is replaced while a stream goes on, and nothing is lost for it.
func TestReplaceUnderAStream(t *testing.T) {
	serverAgent, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, func(c *ClientConfig) {
		local(addr)(c)
		c.MaxCarrierAge = time.Second
	})
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	client.find(t, "carrier replaced")
	serverAgent.find(t, "carrier replaced")
	exchange(t, app, far)
	for _, a := range []*agent{client, serverAgent} {
		if log := a.String(); strings.Contains(log, "session lost") || strings.Contains(log, "session resumed") {
			t.Error("a replacement was taken for a loss")
		}
	}
}

// An idle session whose carriers are replaced loses none of them, on every kind of
// carrier, with a heartbeat that is much longer than the heartbeat timeout.
func TestReplacedCarrierStaysAlive(t *testing.T) {
	t.Parallel()
	patient := func(s *Settings) { s.Heartbeat, s.HeartbeatTimeout = time.Hour, 2*time.Second }
	key, own := newKey(t), newKey(t)
	https := httptest.NewTLSServer(nil) // for its certificate
	https.Close()
	overTLS := func(c *ClientConfig) {
		c.Servers = []*url.URL{{Scheme: "wss", Host: c.Servers[0].Host}}
		c.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		c.TLS.RootCAs.AddCert(https.Certificate())
	}
	mode := func(m carrier.Mode) func(*ClientConfig) { return func(c *ClientConfig) { c.Carrier = m } }
	agents := map[string][2]*agent{}
	for name, edit := range map[string]func(*ClientConfig){
		"websocket": mode(carrier.ModeWebSocket),
		"http":      mode(carrier.ModeHTTP),
		"auto":      mode(carrier.ModeAuto),
		"sealed":    sealing(key, own),
		"wss":       overTLS,
	} {
		server, at := startServer(t, func(c *ServerConfig) {
			patient(&c.Settings)
			c.Key, c.Guard = key, auth.NewGuard(keyed(t, own))
			if name == "wss" {
				c.TLS = &tls.Config{Certificates: https.TLS.Certificates}
			}
		})
		client := startClient(t, at, both(edit, func(c *ClientConfig) {
			patient(&c.Settings)
			c.MaxCarrierAge = 2500 * time.Millisecond
		}))
		agents[name] = [2]*agent{client, server}
	}
	for name, pair := range agents {
		client := pair[0]
		for strings.Count(client.String(), "carrier replaced") < 2 {
			within(t, client.lines, "another replacement")
		}
		for _, a := range pair {
			if strings.Contains(a.String(), "session lost") {
				t.Errorf("%s: a healthy carrier was given up", name)
			}
		}
	}
}

// lifespan is a relay that ends each connection at an age, as some load balancers
// do, or when it is quiet.
func lifespan(t *testing.T, to string, age, quiet time.Duration) string {
	ln := listenLoopback(t)
	var running sync.WaitGroup
	serve := func(a, b net.Conn) {
		end := func() { abort(a); abort(b) }
		old := time.AfterFunc(cmp.Or(age, time.Hour), end)
		idle := time.AfterFunc(cmp.Or(quiet, time.Hour), end)
		var pumps sync.WaitGroup
		for _, c := range [][2]net.Conn{{a, b}, {b, a}} {
			pumps.Go(func() {
				defer end()
				buf := make([]byte, 4096)
				for {
					n, err := c[0].Read(buf)
					if err != nil {
						return
					}
					idle.Reset(cmp.Or(quiet, time.Hour))
					if _, err := c[1].Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
		pumps.Wait()
		old.Stop()
		idle.Stop()
	}
	running.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				abort(a)
				continue
			}
			running.Go(func() { serve(a, b) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

// After two carriers that die of quiet no other does, also of a client that starts
// later.
func TestIdleLimitIsLearned(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	relay := lifespan(t, server, 0, 3*time.Second) // a quarter of it is what a slow machine may be late
	edit := func(c *ClientConfig) {
		c.HeartbeatMin = 100 * time.Millisecond
		c.StateFile = filepath.Join(t.TempDir(), "paths.json")
	}
	var file string
	client := startClient(t, relay, func(c *ClientConfig) { edit(c); file = c.StateFile })
	client.find(t, "idle limit learned")
	<-time.After(4 * time.Second) // quiet
	if n := strings.Count(client.String(), "session lost"); n != 2 {
		t.Errorf("the carrier was lost %d times, want twice", n)
	}
	client.stop()
	client.ended(t)

	next := startClient(t, relay, func(c *ClientConfig) { edit(c); c.StateFile = file })
	next.find(t, "session opened")
	<-time.After(4 * time.Second)
	if strings.Contains(next.String(), "session lost") {
		t.Error("the next client has lost its carrier")
	}
}

// A path that ends every carrier at an age is not felt once that is learned.
func TestAgeLimitIsLearned(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, lifespan(t, server, 2*time.Second, 0), local(addr))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	client.find(t, "age limit learned")
	client.find(t, "carrier replaced")
	var longest time.Duration
	go io.Copy(far, far)
	// A machine that stands still for a second may lose one all the same.
	inARow := func() int {
		log := client.String()
		return strings.Count(log[max(0, strings.LastIndex(log, "session lost")):], "carrier replaced")
	}
	for start := time.Now(); inARow() < 4; {
		if time.Since(start) > time.Minute {
			t.Fatalf("%d carriers in a row were replaced before they were lost", inARow())
		}
		sent := time.Now()
		if _, err := app.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(app, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(sent))
	}
	t.Logf("longest wait for an echo: %v", longest)
}
