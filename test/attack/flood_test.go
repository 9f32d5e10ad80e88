package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

// floodTime is how long a flood lasts.
func floodTime() time.Duration {
	if os.Getenv("CULVERT_SLOW") != "" || os.Getenv("CI") != "" {
		return 15 * time.Second
	}
	return 3 * time.Second
}

// needAddresses skips where there is but one address to attack from.
func needAddresses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the attackers' addresses are those of 127.0.0.0/8, which only Linux has all of")
	}
}

// somewhere is one of sixteen million addresses.
func somewhere() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
}

// flood is an attack that goes on.
type flood struct {
	attempts, refused, later, cut, let atomic.Int64
	stop                               context.CancelFunc
	running                            sync.WaitGroup
	started                            time.Time
}

// floodWith tries credentials, perSecond if the machine gives that, each address ten
// times: what a server takes before it slows an address down.
func floodWith(t *testing.T, server string, perSecond int, credential func() string) *flood {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flood{stop: cancel, started: time.Now()}
	const workers = 50
	for range workers {
		f.running.Go(func() {
			pace := time.NewTicker(workers * time.Second / time.Duration(perSecond))
			defer pace.Stop()
			for ctx.Err() == nil {
				f.attackFrom(ctx, t, server, pace, credential)
			}
		})
	}
	t.Cleanup(f.end)
	return f
}

func (f *flood) attackFrom(ctx context.Context, t *testing.T, server string, pace *time.Ticker, credential func() string) {
	conn, err := dialFrom(ctx, server, somewhere())
	if err != nil {
		f.cut.Add(1)
		<-pace.C
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := newRaw(t, conn)
	for range 10 {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
		resp, _, err := c.try(upgrade(hello(sessionID(), false, 0), credential()))
		if ctx.Err() != nil {
			return
		}
		f.attempts.Add(1)
		switch {
		case err != nil:
			f.cut.Add(1)
			return
		case resp.StatusCode == http.StatusUnauthorized:
			f.refused.Add(1)
		case resp.StatusCode == http.StatusTooManyRequests:
			f.later.Add(1)
			return
		default:
			f.let.Add(1)
			return
		}
	}
}

func (f *flood) end() {
	f.stop()
	f.running.Wait()
}

func (f *flood) String() string {
	seconds := time.Since(f.started).Seconds()
	return fmt.Sprintf("%.0f attempts a second: %d refused with 401, %d with 429, %d cut, %d let in",
		float64(f.attempts.Load())/seconds, f.refused.Load(), f.later.Load(), f.cut.Load(), f.let.Load())
}

// slowHandshakes keeps n connections open that send a byte a second, until the test
// ends. One that is cut is made anew. reached is closed when all were made once.
func slowHandshakes(t *testing.T, server string, n int) (cut *atomic.Int64, reached <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	cut = new(atomic.Int64)
	made := make(chan struct{})
	text := "GET / HTTP/1.1\r\nHost: culvert.test\r\nX-Slow: " + strings.Repeat("x", 1000)
	var running sync.WaitGroup
	running.Go(func() {
		conns := make([]net.Conn, n)
		sent := make([]int, n)
		defer func() {
			for _, conn := range conns {
				if conn != nil {
					conn.Close()
				}
			}
		}()
		second := time.NewTicker(time.Second)
		defer second.Stop()
		for round := 0; ; round++ {
			for i := range conns {
				if ctx.Err() != nil {
					return
				}
				if conns[i] == nil {
					// Forty from each address: the bound for one is not what is tested.
					conn, err := dialFrom(ctx, server, fmt.Sprintf("127.0.1.%d", 1+i/40))
					if err != nil {
						continue
					}
					conns[i], sent[i] = conn, 0
				}
				if _, err := io.WriteString(conns[i], text[sent[i]:sent[i]+1]); err != nil {
					cut.Add(1)
					conns[i].Close()
					conns[i] = nil
				}
				sent[i]++
			}
			if round == 0 {
				close(made)
			}
			select {
			case <-second.C:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return cut, made
}

// startClient runs the client that users have until the test ends, and returns where
// it listens for its forward to target.
func startClient(t *testing.T, server, credential, target string) (addr string) {
	t.Helper()
	log := newLines()
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Servers:      []*url.URL{{Scheme: "ws", Host: server}},
		Credential:   func() (string, error) { return credential, nil },
		Local:        []tunnel.Forward{{Target: target}},
		RetryInitial: true,
		MaxBackoff:   time.Second,
		Settings:     tunnel.Settings{Grace: -1, Logger: slog.New(slog.NewTextHandler(log, nil))},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := client.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("%s", log.journal.String())
		}
	})
	_, addr, _ = strings.Cut(log.find(t, `msg="forward listening"`), " address=")
	addr, _, _ = strings.Cut(strings.TrimSpace(addr), " ")
	return addr
}

// lines is a log that can be waited for.
type lines struct {
	journal
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	n, err := l.journal.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return n, err
}

// find waits for a line with the text.
func (l *lines) find(t *testing.T, text string) string {
	t.Helper()
	timeout := time.After(patience)
	for {
		for line := range strings.Lines(l.String()) {
			if strings.Contains(line, text) {
				return line
			}
		}
		select {
		case <-l.more:
		case <-timeout:
			t.Fatalf("no line with %q in:\n%s", text, l.String())
		}
	}
}

// app is a connection through a tunnel to an echo.
type app struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func newApp(t testing.TB, addr string) *app {
	t.Helper()
	conn, err := dialFrom(t.Context(), addr, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &app{t, conn, bufio.NewReader(conn)}
}

func (a *app) echo() {
	a.t.Helper()
	a.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(a, "ping\n"); err != nil {
		a.t.Fatal(err)
	}
	if line, err := a.r.ReadString('\n'); err != nil || line != "ping\n" {
		a.t.Fatalf("echo %q, %v", line, err)
	}
}

// latency echoes for a time and returns how long one in two and one in a hundred
// takes at most.
func (a *app) latency(d time.Duration) (p50, p99 time.Duration) {
	a.t.Helper()
	var took []time.Duration
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-pace.C {
		start := time.Now()
		a.echo()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// besideGoodClient attacks a server with a client that is in, and another that comes
// while it is attacked. No deadline holds on a machine that is busy otherwise; the
// latency is printed, and bounded very loosely.
func besideGoodClient(t *testing.T, server, credential string, attack func() fmt.Stringer) {
	echo := startEcho(t)
	good := newApp(t, startClient(t, server, credential, echo))
	good.echo()
	before50, before99 := good.latency(time.Second)

	f := attack()
	p50, p99 := good.latency(floodTime())
	t.Logf("echo before the attack: p50 %v, p99 %v; beside it: p50 %v, p99 %v", before50, before99, p50, p99)
	start := time.Now()
	newcomer := newApp(t, startClient(t, server, credential, echo))
	newcomer.echo()
	t.Logf("a new client is in after %v", time.Since(start))
	good.echo()
	t.Logf("%s", f)
	if p50 > time.Second {
		t.Errorf("a good client waits %v", p50)
	}
}

func TestFloodOfWrongTokens(t *testing.T) {
	needAddresses(t)
	server, log := startServer(t, nil)
	besideGoodClient(t, server, tokenOfAlice, func() fmt.Stringer {
		cut, reached := slowHandshakes(t, server, 2000)
		<-reached
		t.Cleanup(func() { t.Logf("%d slow handshakes were cut", cut.Load()) })
		f := floodWith(t, server, 10_000, func() string { return bearer(fmt.Sprintf("wrong-%016x", rand.Uint64())) })
		t.Cleanup(func() {
			if f.let.Load() > 0 || f.refused.Load() < 100 {
				t.Errorf("%s", f)
			}
			// Nobody fills the log by failing.
			if n := strings.Count(log.String(), "\n"); n > 100 {
				t.Errorf("%d lines are in the log", n)
			}
		})
		return f
	})
}

func TestFloodOfWrongPasswords(t *testing.T) {
	needAddresses(t)
	password, err := auth.ParsePassword(auth.HashPassword("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	server, _ := startServer(t, func(c *tunnel.ServerConfig) {
		c.Guard = auth.NewGuard(newDirectory(t, auth.Identity{
			Name: "alice", Policy: auth.Everything(), Passwords: []auth.Password{password},
		}))
	})
	besideGoodClient(t, server, carrier.Basic("alice", "open sesame"), func() fmt.Stringer {
		f := floodWith(t, server, 10_000, func() string {
			return basic([]string{"alice", "bob"}[rand.N(2)], fmt.Sprintf("wrong-%d", rand.Uint64()))
		})
		t.Cleanup(func() {
			if f.let.Load() > 0 || f.refused.Load()+f.later.Load() < 10 {
				t.Errorf("%s", f)
			}
		})
		return f
	})
}

// One address that fails is slowed down, and a good client behind it is not.
func TestFailingAddressIsSlow(t *testing.T) {
	needAddresses(t)
	server, _ := startServer(t, nil)
	c := dialRaw(t, server, "127.0.0.77")
	var slow time.Duration
	for range 12 {
		start := time.Now()
		if resp, body := c.ask(upgrade(hello(sessionID(), false, 0), bearer("wrong"))); resp.StatusCode != 401 {
			t.Fatalf("answered %s, %q", resp.Status, body)
		}
		slow = time.Since(start)
	}
	if slow < time.Second {
		t.Errorf("the twelfth failure is answered after %v", slow)
	}
	for _, from := range []string{"127.0.0.77", "127.0.0.78"} {
		start := time.Now()
		attach(t, dialRaw(t, server, from), sessionID(), bearer(tokenOfAlice))
		if took := time.Since(start); took > slow/2 {
			t.Errorf("a good client at %s is let in after %v", from, took)
		}
	}
}
