package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
)

// agent is a client or a server that runs, with its log.
type agent struct {
	*journal
	stop context.CancelFunc
	done chan struct{}
	err  error // valid after done
}

func startAgent(t testing.TB, j *journal, run func(context.Context) error) *agent {
	ctx, cancel := context.WithCancel(t.Context())
	a := &agent{journal: j, stop: cancel, done: make(chan struct{})}
	go func() {
		a.err = run(ctx)
		close(a.done)
	}()
	t.Cleanup(func() {
		cancel()
		within(t, a.done, "end of an agent")
		if t.Failed() {
			t.Logf("%s", j)
		}
	})
	return a
}

// ended waits for the agent's end and returns its error.
func (a *agent) ended(t testing.TB) error {
	t.Helper()
	within(t, a.done, "end of an agent")
	return a.err
}

const goodToken = "correct-horse-battery-staple"

// startServer runs a server at loopback and returns its address.
func startServer(t testing.TB, edit func(*ServerConfig)) (*agent, string) {
	t.Helper()
	logger, journal := newJournal(t)
	cfg := ServerConfig{
		Listen: "127.0.0.1:0", Guard: everything(t),
		Settings: Settings{Grace: 100 * time.Millisecond, Logger: logger},
	}
	if edit != nil {
		edit(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, journal, s.Run)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	addr, err := s.Addr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return a, addr.String()
}

func startClient(t testing.TB, server string, edit func(*ClientConfig)) *agent {
	t.Helper()
	c, journal := newTestClient(t, server, edit)
	return startAgent(t, journal, c.Run)
}

func newTestClient(t testing.TB, server string, edit func(*ClientConfig)) (*Client, *journal) {
	t.Helper()
	logger, journal := newJournal(t)
	cfg := ClientConfig{
		Servers:    []*url.URL{{Scheme: "ws", Host: server}},
		Credential: func() (string, error) { return goodToken, nil },
		MaxBackoff: 100 * time.Millisecond,
		Settings:   Settings{Grace: 100 * time.Millisecond, Logger: logger},
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, journal
}

// local adds a local forward to target, at a port that the system chooses.
func local(target string) func(*ClientConfig) {
	return func(c *ClientConfig) { c.Local = append(c.Local, Forward{Target: target}) }
}

func remote(target string) func(*ClientConfig) {
	return func(c *ClientConfig) { c.Remote = append(c.Remote, Forward{Target: target}) }
}

// listening is the address of the agent's nth forward, as its log says it.
func (a *agent) listening(t testing.TB, kind string) string {
	t.Helper()
	line := a.find(t, `msg="forward listening"`, `forward="`+kind)
	_, rest, _ := strings.Cut(line, " address=")
	addr, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if _, err := netip.ParseAddrPort(addr); err != nil {
		t.Fatalf("no address in %q", line)
	}
	return addr
}

func connect(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// target accepts connections and gives them to the test.
func target(t testing.TB) (addr string, conns <-chan *net.TCPConn) {
	t.Helper()
	ln := listenLoopback(t)
	c := make(chan *net.TCPConn, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			c <- conn.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		close(c)
		for conn := range c {
			conn.Close()
		}
	})
	return ln.Addr().String(), c
}

// path is a TCP relay between client and server that the test can cut.
type path struct {
	addr   string
	mu     sync.Mutex
	to     string
	single bool // a new connection cuts those before it
	ends   []net.Conn
}

func newPath(t testing.TB, to string) *path {
	ln := listenLoopback(t)
	p := &path{addr: ln.Addr().String(), to: to}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			to, single := p.to, p.single
			p.mu.Unlock()
			if single {
				p.cut()
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				abort(a)
				continue
			}
			p.mu.Lock()
			p.ends = append(p.ends, a, b)
			p.mu.Unlock()
			for _, c := range [][2]net.Conn{{a, b}, {b, a}} {
				running.Go(func() {
					io.Copy(c[0], c[1])
					c[0].Close()
					c[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		running.Wait()
	})
	return p
}

func (p *path) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.ends {
		c.Close()
	}
	p.ends = nil
}

func (p *path) lead(to string) {
	p.mu.Lock()
	p.to = to
	p.mu.Unlock()
}

// exchange sends a megabyte each way over the two ends of a tunnelled
// connection, with half-closes.
func exchange(t testing.TB, a, b *net.TCPConn) {
	t.Helper()
	data := make([]byte, 1<<20)
	rand.Read(data)
	var running sync.WaitGroup
	for _, c := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		running.Go(func() {
			c[0].Write(data)
			c[0].CloseWrite()
		})
		running.Go(func() {
			h := sha256.New()
			if n, err := io.Copy(h, c[1]); err != nil || !bytes.Equal(h.Sum(nil), sum(data)) {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
		})
	}
	running.Wait()
	a.Close()
	b.Close()
}

// greet sees to it that both directions of a tunnelled connection are open.
func greet(t testing.TB, a, b *net.TCPConn) {
	t.Helper()
	for _, c := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		io.WriteString(c[0], "x")
		if _, err := c[1].Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantReset makes a connection to addr that must be reset.
func wantReset(t testing.TB, addr string) {
	t.Helper()
	app, err := net.Dial("tcp", addr)
	if err == nil {
		defer app.Close()
		app.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.ReadAll(app)
	}
	if !isReset(err) { // which may be so fast that even the dial sees it
		t.Errorf("application sees %v, want a reset", err)
	}
}

func TestLocalForward(t *testing.T) {
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, local(addr))
	app := connect(t, client.listening(t, "local"))
	exchange(t, app, within(t, conns, "connection to the target"))
	client.find(t, `msg="stream closed"`, "sent_bytes=1048576", "received_bytes=1048576")
}

func TestRemoteForward(t *testing.T) {
	server, at := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, at, remote(addr))
	app := connect(t, client.listening(t, "remote"))
	exchange(t, app, within(t, conns, "connection to the target"))
	server.find(t, `msg="forward listening"`, "client=alice")
	server.find(t, `msg="session opened"`, "client=alice", "remote=127.0.0.1:")
}

// An idle stream costs each agent at most 24 KiB, after traffic as before. Both
// agents, and the ends of the connections, are in this process.
func TestIdleStreamMemory(t *testing.T) {
	const count = 500
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, local(addr))
	at := client.listening(t, "local")
	usage := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	open := func(n int) (all [][2]*net.TCPConn) {
		for range n {
			app := connect(t, at)
			far := within(t, conns, "connection to the target")
			greet(t, app, far)
			all = append(all, [2]*net.TCPConn{app, far})
		}
		return all
	}
	open(10) // what is there once
	before := usage()
	all := open(count)
	each := (usage() - before) / count / 2
	t.Logf("an idle stream costs each agent %d bytes", each)
	if each > 24<<10 {
		t.Errorf("an idle stream costs each agent %d bytes", each)
	}
	runtime.KeepAlive(all)
}

func TestHalfCloseEndToEnd(t *testing.T) {
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, local(addr))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	for _, c := range [][2]*net.TCPConn{{app, far}, {far, app}} {
		io.WriteString(c[0], "that is all")
		c[0].CloseWrite()
		if b, err := io.ReadAll(c[1]); string(b) != "that is all" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
	}
}

func TestResetEndToEnd(t *testing.T) {
	_, server := startServer(t, nil)
	addr, conns := target(t)
	client := startClient(t, server, local(addr))
	for _, byTarget := range []bool{false, true} {
		app := connect(t, client.listening(t, "local"))
		far := within(t, conns, "connection to the target")
		greet(t, app, far)
		if byTarget {
			app, far = far, app
		}
		abort(app)
		if _, err := io.ReadAll(far); !isReset(err) {
			t.Errorf("reset by target %v: other end sees %v", byTarget, err)
		}
	}
}

func TestRefusedEndToEnd(t *testing.T) {
	server, at := startServer(t, nil)
	dead := closedPort(t)
	client := startClient(t, at, func(c *ClientConfig) {
		local(dead)(c)
		remote(dead)(c)
	})
	for _, kind := range []string{"local", "remote"} {
		wantReset(t, client.listening(t, kind))
	}
	for _, a := range []*agent{client, server} {
		a.find(t, "level=WARN", `msg="target refused"`, "target="+dead, "code=refused")
	}
	server.find(t, `msg="target refused"`, "client=alice", "session=", "stream=")
}

func TestPolicyEndToEnd(t *testing.T) {
	_, server := startServer(t, func(c *ServerConfig) {
		c.Guard = rules(t, "deny *:*", "")
	})
	addr, _ := target(t)
	client := startClient(t, server, local(addr))
	wantReset(t, client.listening(t, "local"))
	client.find(t, `msg="target refused"`, "code=denied")
}

// A dial ends when the user of its stream has left.
func TestPendingDialEnds(t *testing.T) {
	dialling := make(chan struct{}, 10)
	server, at := startServer(t, func(c *ServerConfig) {
		c.DialTimeout = time.Hour
		c.Guard = everything(t)
		c.Guard.Protect(func(string, netip.AddrPort) bool { dialling <- struct{}{}; return false })
	})
	client := startClient(t, at, local(fullBacklog(t)))
	app := connect(t, client.listening(t, "local"))
	within(t, dialling, "dial")
	abort(app)
	client.find(t, `msg="connection left before the open reply"`)
	server.find(t, `msg="stream ended before its target answered"`)
}

func TestResumeKeepsStreams(t *testing.T) {
	server, at := startServer(t, nil)
	p := newPath(t, at)
	addr, conns := target(t)
	client := startClient(t, p.addr, func(c *ClientConfig) {
		local(addr)(c)
		remote(addr)(c)
	})
	for _, kind := range []string{"local", "remote"} {
		app := connect(t, client.listening(t, kind))
		far := within(t, conns, "connection to the target")
		for range 5 {
			p.cut()
			io.WriteString(app, "still there?")
			b := make([]byte, 12)
			if _, err := io.ReadFull(far, b); err != nil {
				t.Fatal(err)
			}
			p.cut()
			far.Write(b)
			if _, err := io.ReadFull(app, b); err != nil {
				t.Fatal(err)
			}
		}
		// A connection that arrives while there is no carrier waits for one.
		p.cut()
		late := connect(t, client.listening(t, kind))
		exchange(t, late, within(t, conns, "connection to the target"))
		exchange(t, app, far)
	}
	client.find(t, `msg="session lost"`)
	client.find(t, `msg="session resumed"`)
	server.find(t, `msg="session resumed"`, "client=alice")
}

// When the server has forgotten the session, applications see a reset and new
// connections work.
func TestServerRestart(t *testing.T) {
	_, first := startServer(t, nil)
	_, second := startServer(t, nil)
	p := newPath(t, first)
	addr, conns := target(t)
	client := startClient(t, p.addr, func(c *ClientConfig) {
		local(addr)(c)
		remote(addr)(c)
	})
	for _, kind := range []string{"local", "remote"} {
		client.listening(t, kind)
	}
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	p.lead(closedPort(t))
	p.cut()
	client.find(t, `msg="session lost"`)
	// Who comes meanwhile is not drawn into the end of the session.
	waiting := connect(t, client.listening(t, "local"))
	client.find(t, `msg="connect failed"`)
	p.lead(second)
	if _, err := io.ReadAll(app); !isReset(err) {
		t.Errorf("application sees %v", err)
	}
	exchange(t, waiting, within(t, conns, "connection to the target"))
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	client.find(t, `msg="session expired"`)
	if strings.Count(client.String(), `msg="session opened"`) != 2 {
		t.Error("no second session")
	}
}

// refusedWith runs a client that must end by itself.
func refusedWith(t *testing.T, server string, edit func(*ClientConfig)) error {
	t.Helper()
	return startClient(t, server, edit).ended(t)
}

func TestFirstAttemptPermanent(t *testing.T) {
	_, server := startServer(t, nil)
	wrong := func(c *ClientConfig) { c.Credential = func() (string, error) { return "wrong", nil } }
	if err := refusedWith(t, server, wrong); !errors.Is(err, carrier.ErrUnauthorized) || !carrier.Permanent(err) {
		t.Errorf("wrong token: %v", err)
	}
	if err := refusedWith(t, server, func(c *ClientConfig) { c.Credential = nil }); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Errorf("no token: %v", err)
	}
	if err := refusedWith(t, server, func(c *ClientConfig) { c.Servers[0].Path = "/elsewhere" }); !errors.Is(err, carrier.ErrNotCulvert) {
		t.Errorf("wrong path: %v", err)
	}
}

func TestRetryInitial(t *testing.T) {
	_, server := startServer(t, nil)
	var mu sync.Mutex
	token := "wrong"
	addr, conns := target(t)
	client := startClient(t, server, func(c *ClientConfig) {
		local(addr)(c)
		c.RetryInitial = true
		c.Credential = func() (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return token, nil
		}
	})
	client.find(t, "level=WARN", `msg="connect failed"`, "401")
	mu.Lock()
	token = goodToken
	mu.Unlock()
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	if log := client.String(); strings.Contains(log, goodToken) {
		t.Error("credential in the log")
	}
}

// A network that is not there yet is waited for if the user says so, and
// otherwise told at once.
func TestServerComesLater(t *testing.T) {
	_, server := startServer(t, nil)
	p := newPath(t, closedPort(t))
	addr, conns := target(t)
	if err := startClient(t, closedPort(t), local(addr)).ended(t); err == nil {
		t.Error("client without a server ended cleanly")
	}
	client := startClient(t, p.addr, func(c *ClientConfig) {
		local(addr)(c)
		c.RetryInitial = true
	})
	client.find(t, `msg="connect failed"`)
	app := connect(t, client.listening(t, "local"))
	p.lead(server)
	exchange(t, app, within(t, conns, "connection to the target"))
}

func TestBindFailureIsImmediate(t *testing.T) {
	taken := listenLoopback(t).Addr().(*net.TCPAddr).Port
	client := startClient(t, closedPort(t), func(c *ClientConfig) {
		c.Local = []Forward{{Target: "a:1"}, {Port: taken, Target: "a:1"}}
	})
	if err := client.ended(t); !errors.Is(err, ErrListen) || !strings.Contains(err.Error(), strconv.Itoa(taken)) {
		t.Errorf("client ended with %v", err)
	}
	s, err := NewServer(ServerConfig{Guard: everything(t), Listen: net.JoinHostPort("127.0.0.1", strconv.Itoa(taken))})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, ErrListen) {
		t.Errorf("server ended with %v", err)
	}
}

func TestRemoteListenFailureAtFirst(t *testing.T) {
	_, server := startServer(t, nil)
	taken := listenLoopback(t).Addr().(*net.TCPAddr).Port
	err := refusedWith(t, server, func(c *ClientConfig) { c.Remote = []Forward{{Port: taken, Target: "a:1"}} })
	if !errors.Is(err, ErrListen) || !strings.Contains(err.Error(), "in use") || strings.Contains(err.Error(), "\n") {
		t.Errorf("client ended with %v", err)
	}
}

// A client that was killed comes back to its port while the server still keeps
// its former session.
func TestRemotePortTakeover(t *testing.T) {
	server, at := startServer(t, nil)
	p := newPath(t, at)
	addr, conns := target(t)
	first := startClient(t, p.addr, remote(addr))
	port := netip.MustParseAddrPort(first.listening(t, "remote")).Port()
	app := connect(t, first.listening(t, "remote"))
	within(t, conns, "connection to the target")
	p.lead(closedPort(t)) // the first client never comes back
	p.cut()
	server.find(t, `msg="session lost"`)

	second := startClient(t, at, func(c *ClientConfig) { c.Remote = []Forward{{Port: int(port), Target: addr}} })
	exchange(t, connect(t, second.listening(t, "remote")), within(t, conns, "connection to the target"))
	server.find(t, `msg="forward taken over"`, "from_session=")
	app.Close()
}

func TestGraceLetsStreamsFinish(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			server, at := startServer(t, func(c *ServerConfig) { c.Grace = time.Minute })
			addr, conns := target(t)
			client := startClient(t, at, func(c *ClientConfig) {
				local(addr)(c)
				remote(addr)(c)
				c.Grace = time.Minute
			})
			apps := []*net.TCPConn{connect(t, client.listening(t, "local"))}
			fars := []*net.TCPConn{within(t, conns, "connection to the target")}
			apps = append(apps, connect(t, client.listening(t, "remote")))
			fars = append(fars, within(t, conns, "connection to the target"))
			for i := range apps {
				greet(t, apps[i], fars[i])
			}
			stopped := client
			if who == "server" {
				stopped = server
			}
			stopped.stop()
			// Its listeners are closed, its streams are not.
			for addr := client.listening(t, map[string]string{"client": "local", "server": "remote"}[who]); ; {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					break
				}
				abort(c)
			}
			for i := range apps {
				exchange(t, apps[i], fars[i])
			}
			if err := stopped.ended(t); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGraceEnds(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			server, at := startServer(t, nil)
			addr, conns := target(t)
			client := startClient(t, at, local(addr))
			app := connect(t, client.listening(t, "local"))
			far := within(t, conns, "connection to the target")
			greet(t, app, far)
			stopped := client
			if who == "server" {
				stopped = server
			}
			stopped.stop()
			if err := stopped.ended(t); err != nil {
				t.Error(err)
			}
			for _, c := range []*net.TCPConn{app, far} {
				if _, err := io.ReadAll(c); !isReset(err) {
					t.Errorf("%v sees %v, want a reset", c.LocalAddr(), err)
				}
			}
		})
	}
}

// An idle agent stops at once, and its peer is told.
func TestIdleStop(t *testing.T) {
	server, at := startServer(t, func(c *ServerConfig) { c.Grace = time.Hour })
	client := startClient(t, at, func(c *ClientConfig) { c.Grace = time.Hour })
	client.find(t, `msg="session opened"`)
	client.stop()
	if err := client.ended(t); err != nil {
		t.Error(err)
	}
	server.find(t, `msg="session closed"`, "client is leaving")

	client = startClient(t, at, func(c *ClientConfig) { c.Grace = time.Hour })
	line := client.find(t, `msg="session opened"`)
	_, session, _ := strings.Cut(line, "session=")
	session, _, _ = strings.Cut(session, " ")
	server.find(t, `msg="session opened"`, session) // there too
	server.stop()
	if err := server.ended(t); err != nil {
		t.Error(err)
	}
	client.find(t, `msg="session leaving"`)
	client.find(t, `msg="connect failed"`) // and goes on trying
}

// A server that restarts politely is found again.
func TestServerGoesAndComesBack(t *testing.T) {
	server, at := startServer(t, nil)
	p := newPath(t, at)
	addr, conns := target(t)
	client := startClient(t, p.addr, func(c *ClientConfig) {
		local(addr)(c)
		remote(addr)(c)
	})
	port := client.listening(t, "remote")
	_, second := startServer(t, nil)
	p.lead(second)
	server.stop()
	if err := server.ended(t); err != nil {
		t.Error(err)
	}
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	// The remote forward is at the port that it had.
	for strings.Count(client.String(), "address="+port) < 2 {
		within(t, client.lines, "log line")
	}
	exchange(t, connect(t, port), within(t, conns, "connection to the target"))
}

// Only one session that its server has given up goes on beside its successor:
// the streams of the one before are reset.
func TestOneSessionLeaves(t *testing.T) {
	patient := func(c *ServerConfig) { c.Grace = time.Minute }
	first, firstAt := startServer(t, patient)
	second, secondAt := startServer(t, patient)
	_, thirdAt := startServer(t, nil)
	p := newPath(t, firstAt)
	addr, conns := target(t)
	client := startClient(t, p.addr, local(addr))
	pair := func() (app, far *net.TCPConn) {
		app = connect(t, client.listening(t, "local"))
		far = within(t, conns, "connection to the target")
		greet(t, app, far)
		return app, far
	}
	leaves := func(server *agent, sessions int, next string) {
		p.lead(next)
		server.stop()
		for strings.Count(client.String(), `msg="session leaving"`) < sessions {
			within(t, client.lines, "log line")
		}
	}
	oldest, oldestFar := pair()
	leaves(first, 1, secondAt)
	older, olderFar := pair()
	greet(t, oldest, oldestFar) // the one session goes on
	leaves(second, 2, thirdAt)
	for _, c := range []*net.TCPConn{oldest, oldestFar} {
		if _, err := io.ReadAll(c); !isReset(err) {
			t.Errorf("%v, of the oldest session, sees %v, want a reset", c.LocalAddr(), err)
		}
	}
	exchange(t, older, olderFar)
	app, far := pair()
	exchange(t, app, far)
	for _, server := range []*agent{first, second} {
		if err := server.ended(t); err != nil {
			t.Error(err)
		}
	}
}

func TestSessionLimits(t *testing.T) {
	server, at := startServer(t, func(c *ServerConfig) { c.MaxSessionsPerIdentity = 1 })
	first := startClient(t, at, nil)
	first.find(t, `msg="session opened"`)
	second := startClient(t, at, func(c *ClientConfig) { c.RetryInitial = true })
	second.find(t, `msg="connect failed"`, "limit")
	server.find(t, "level=WARN", `msg="limit reached"`, "client=alice")
	first.stop()
	second.find(t, `msg="session opened"`)
}

func TestServerAnswersStrangersPlainly(t *testing.T) {
	_, at := startServer(t, nil)
	resp, err := http.Get("http://" + at + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// Neither a target that does not answer nor one that does not read is in the way
// of others.
func TestNobodyBlocksAnybody(t *testing.T) {
	_, server := startServer(t, func(c *ServerConfig) { c.DialTimeout = time.Hour })
	stuckAddr, stuck := target(t)
	goodAddr, conns := target(t)
	silent := fullBacklog(t)
	client := startClient(t, server, func(c *ClientConfig) {
		for _, addr := range []string{silent, stuckAddr, goodAddr} {
			c.Local = append(c.Local, Forward{Target: addr})
		}
	})
	at := func(addr string) string { // where the client listens for it
		return client.listening(t, "local localhost:0:"+addr)
	}
	var writers sync.WaitGroup
	for range 20 {
		connect(t, at(silent))
		app := connect(t, at(stuckAddr))
		within(t, stuck, "connection to the target")
		writers.Go(func() { app.Write(make([]byte, 4<<20)) })
		t.Cleanup(func() { abort(app) })
	}
	exchange(t, connect(t, at(goodAddr)), within(t, conns, "connection to the target"))
	t.Cleanup(writers.Wait)
}

func TestTLS(t *testing.T) {
	https := httptest.NewTLSServer(nil) // for its certificate
	https.Close()
	server, at := startServer(t, func(c *ServerConfig) {
		c.TLS = &tls.Config{Certificates: https.TLS.Certificates}
		c.Path = "/tunnel"
	})
	wss := func(c *ClientConfig) { c.Servers = []*url.URL{{Scheme: "wss", Host: at, Path: "/tunnel"}} }
	var untrusted x509.UnknownAuthorityError
	if err := refusedWith(t, at, wss); !errors.As(err, &untrusted) {
		t.Errorf("client ended with %v", err)
	}
	addr, conns := target(t)
	client := startClient(t, at, func(c *ClientConfig) {
		wss(c)
		local(addr)(c)
		c.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		c.TLS.RootCAs.AddCert(https.Certificate())
	})
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
	server.find(t, `msg="server listening"`, "tls=true")
}

func TestWithoutAuthentication(t *testing.T) {
	_, server := startServer(t, func(c *ServerConfig) { c.Guard = auth.NewGuard(auth.Everybody()) })
	addr, conns := target(t)
	client := startClient(t, server, func(c *ClientConfig) {
		local(addr)(c)
		c.Credential = nil
	})
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
}

func TestConfigErrors(t *testing.T) {
	u := []*url.URL{{Scheme: "ws", Host: "localhost"}}
	for _, cfg := range []ClientConfig{
		{},
		{Servers: u, Local: []Forward{{Port: -1, Target: "a:1"}}},
		{Servers: u, Remote: []Forward{{Target: "nonsense"}}},
		{Servers: u, Settings: Settings{Heartbeat: -1}},
		{Servers: u, MaxBackoff: -1},
	} {
		if _, err := NewClient(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := NewClient(ClientConfig{
		Servers:    []*url.URL{{Scheme: "ws", Host: "example.com"}},
		Credential: func() (string, error) { return goodToken, nil },
	}); !errors.Is(err, carrier.ErrPlaintextCredential) {
		t.Errorf("credential over plaintext: %v", err)
	}
	for _, cfg := range []ServerConfig{
		{},
		{Listen: "nonsense"},
		{Listen: ":0", Path: "nonsense"},
		{Listen: ":0", MaxSessions: -1},
		{Listen: ":0", Settings: Settings{MaxStreams: -1}},
	} {
		if _, err := NewServer(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
