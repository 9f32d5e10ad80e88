package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/test/agent"
	"culvert/test/netfault"
)

// Streams that nobody reads take neither the session's time nor memory without bound.
func TestUnreadStreams(t *testing.T) {
	t.Run("within the budget", func(t *testing.T) {
		const limit = 400 << 20 // resident bytes of each agent, far above what may be buffered
		u := newUnread(t, config{})
		u.stuck(t)
		u.judge(t, limit)
	})
	// What blocks for longest is reset, and nothing else.
	t.Run("beyond the budget", func(t *testing.T) {
		const limit = 150 << 20
		small := []string{"--session-memory", "4MiB", "--memory", "4MiB"}
		u := newUnread(t, config{server: small, client: small})
		waitFor(t, "a reset", func() bool { return u.ended.Load() > 0 })
		u.stuck(t)
		u.judge(t, limit)
		t.Logf("%d of %d streams were reset", u.ended.Load(), unreadStreams)
		u.client.Find(patience, "limit reached", "limit", "memory")
		if u.ended.Load() == unreadStreams {
			t.Error("every stream was reset")
		}
	})
}

const unreadStreams = 200

// unread is a rig with streams that nobody reads, half of them at the application and half at the target.
type unread struct {
	*rig
	echo   string // address of the forward to a target that echoes
	alone  []time.Duration
	poured atomic.Int64 // bytes
	ended  atomic.Int64 // streams
}

func newUnread(t *testing.T, c config) *unread {
	u := new(unread)
	flood := serve(t, u.pour)
	over := make(chan struct{})
	swallow := serve(t, func(conn *net.TCPConn) { <-over }) // accepts and never reads
	target := serve(t, echo)
	c.programs = &measured
	for _, address := range []string{flood, swallow, target} {
		c.client = append(c.client[:len(c.client):len(c.client)], local(address)...)
	}
	u.rig = newRig(t, c)
	u.echo = u.forward(target)
	u.alone = echoes(t, connect(t, u.echo), 200)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		close(over)
		wg.Wait()
	})
	for range unreadStreams / 2 {
		connect(t, u.forward(flood))
		upload := connect(t, u.forward(swallow))
		wg.Go(func() { u.pour(upload) })
	}
	return u
}

// pour writes until it cannot.
func (u *unread) pour(conn *net.TCPConn) {
	defer u.ended.Add(1)
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Write(buf)
		u.poured.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// stuck waits until nothing moves any more.
func (u *unread) stuck(t *testing.T) {
	t.Helper()
	last, since := int64(-1), time.Now()
	waitFor(t, "the streams to be stuck", func() bool {
		if now := u.poured.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}

// judge looks at a fresh stream, at the session, and at the memory of both agents.
func (u *unread) judge(t *testing.T, limit int64) {
	t.Helper()
	fresh := echoes(t, connect(t, u.echo), 200)
	t.Logf("echo p50 %v, p99 %v alone; %v, %v beside %d unread streams (%d MiB poured in)",
		u.alone[100], u.alone[198], fresh[100], fresh[198], unreadStreams, u.poured.Load()>>20)
	if fresh[100] > 20*time.Millisecond {
		t.Errorf("an echo takes %v", fresh[100])
	}
	for name, p := range map[string]*agent.Process{"client": u.client, "server": u.server} {
		rss := p.RSS()
		t.Logf("%s: %d MiB resident", name, rss>>20)
		if rss > limit {
			t.Errorf("the %s takes %d MiB", name, rss>>20)
		}
		if n := p.Count("session lost"); n > 0 {
			t.Errorf("the %s lost its session", name)
		}
	}
}

// The limits on sessions and streams bite with a log line, and only whoever is beyond them.
func TestSessionsAndStreamsAreLimited(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{
		server: []string{"--max-sessions-per-identity", "1", "--max-streams", "3"},
		client: local(target),
	})
	entrance := r.forward(target)
	var conns []net.Conn
	for range 3 {
		conn := connect(t, entrance)
		mustPing(t, conn, "within the limit")
		conns = append(conns, conn)
	}
	wantRefused(t, entrance)
	r.client.Find(patience, "limit reached", "limit", "max_streams", "value", "3") // of which the server has told it
	another := startClient(t, programs, append(local(target), "--server", "ws://"+r.address,
		"--token-file", tokenFile(t, token), "--retry-initial", "--max-backoff", "300ms")...)
	r.server.Find(patience, "limit reached", "limit", "sessions")
	another.ExpectText(patience, "too many sessions")
	for _, conn := range conns {
		mustPing(t, conn, "unharmed")
		_ = conn.Close()
	}
	if code := r.client.Stop(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	another.Expect(patience, "session opened")
}

// Out of file descriptors is a pause for those who come, and no reason to end.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			r := newRig(t, config{client: append(local(target), "--max-backoff", "300ms")})
			entrance := r.forward(target)
			first := connect(t, entrance)
			mustPing(t, first, "before")
			limited := r.client
			if who == "server" {
				limited = r.server
			}
			few := uint64(descriptors(t, limited) + 20)
			if err := unix.Prlimit(limited.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: few}, nil); err != nil {
				t.Fatal(err)
			}
			var conns []net.Conn
			for range 60 {
				conn, err := net.DialTimeout("tcp", entrance, patience)
				if err != nil {
					continue // reset already
				}
				t.Cleanup(func() { _ = conn.Close() })
				conns = append(conns, conn)
			}
			// Through the server the dials fail; at the client the accepts do.
			if who == "server" {
				limited.Expect(patience, "target refused")
			} else {
				limited.Expect(patience, "accept failed")
			}
			mustPing(t, first, "while there are none left")
			for _, conn := range conns {
				_ = conn.Close()
			}
			waitFor(t, "descriptors to become free", func() bool { return descriptors(t, limited) < int(few)-10 })
			r.relay.Cut()
			r.client.Expect(patience, "session resumed")
			mustPing(t, first, "after all that")
			if err := eventually(func() bool {
				conn, err := net.Dial("tcp", entrance)
				if err != nil {
					return false
				}
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(time.Second))
				_, err = ping(conn, "a new one")
				return err == nil
			}); err != nil {
				t.Errorf("a new connection: %v", err)
			}
		})
	}
}

// descriptors is how many file descriptors a process has open.
func descriptors(t *testing.T, p *agent.Process) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Strangers who dawdle, guess or talk nonsense do not hurt a client that is let in, nor one that comes.
func TestUnauthenticatedFloods(t *testing.T) {
	t.Parallel()
	const perAddress = 32
	target := serve(t, echo)
	r := newRig(t, config{
		server: []string{
			"--max-unauthenticated-per-address", fmt.Sprint(perAddress), "--max-unauthenticated", "128",
			"--handshake-timeout", "3s",
		},
		client: local(target),
	})
	entrance := r.forward(target)
	conn := connect(t, entrance)
	before := r.server.RSS()

	// Slow handshakes, from an address of their own.
	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: patience}
	var slow []net.Conn
	for range 4 * perAddress {
		s, err := stranger.Dial("tcp", r.address)
		if err != nil {
			continue // refused is as good
		}
		t.Cleanup(func() { _ = s.Close() })
		_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ") // may be cut already
		slow = append(slow, s)
	}
	r.server.Find(patience, "limit reached")
	took := echoes(t, conn, 100)
	t.Logf("beside %d slow handshakes: echo p50 %v, p99 %v", len(slow), took[50], took[98])

	started := time.Now()
	second := startClient(t, programs, append(local(target), "--server", "ws://"+r.address,
		"--token-file", tokenFile(t, token))...)
	second.Find(patience, "session opened")
	t.Logf("another client is in after %v", time.Since(started).Round(time.Millisecond))
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("another client had to wait for %v", took)
	}

	// Wrong credentials, as fast as they go: ten at once, and then no client has more
	// than one in a second.
	var refused atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{DialContext: stranger3.DialContext}, Timeout: patience}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				request, err := http.NewRequest(http.MethodGet, "http://"+r.address+"/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				for key, value := range map[string]string{
					"Authorization": "Bearer wrong", "Connection": "Upgrade", "Upgrade": "websocket",
					"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
					"Sec-WebSocket-Protocol": "culvert.v1", "Culvert-Hello": "AAAA",
				} {
					request.Header.Set(key, value)
				}
				response, err := client.Do(request)
				if err != nil {
					continue // over a limit
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				if response.StatusCode == http.StatusUnauthorized {
					refused.Add(1)
				}
			}
		})
	}
	waitFor(t, "refusals", func() bool { return refused.Load() > 20 })
	took = echoes(t, conn, 100)
	close(stop)
	wg.Wait()
	t.Logf("beside %d wrong credentials: echo p50 %v, p99 %v", refused.Load(), took[50], took[98])
	if took[50] > 200*time.Millisecond {
		t.Errorf("an echo takes %v", took[50])
	}

	// The slow ones are cut, whatever they still send.
	for _, s := range slow {
		extend(t, s, patience)
		_, _ = io.Copy(io.Discard, s) // ends
	}
	if grown := r.server.RSS() - before; grown > 64<<20 {
		t.Errorf("the server has grown by %d MiB", grown>>20)
	}
}

var stranger3 = net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}, Timeout: patience}

// Nonsense before and in the place of a handshake ends that connection only.
func TestGarbageInsteadOfAHandshake(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{server: []string{"--handshake-timeout", "2s"}, client: local(target)})
	conn := connect(t, r.forward(target))
	before := r.server.RSS()
	for name, garbage := range map[string]io.Reader{
		"noise":            io.LimitReader(content(9), 1<<20),
		"an endless line":  io.LimitReader(repeat("A"), 64<<20),
		"endless headers":  io.MultiReader(strings.NewReader("GET / HTTP/1.1\r\n"), io.LimitReader(repeat("X-A: b\r\n"), 64<<20)),
		"a TLS hello":      strings.NewReader("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"a body of a GiB":  strings.NewReader("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"),
		"a browser":        strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\nOrigin: https://x\r\n\r\n"),
		"half an upgrade":  strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"),
		"HTTP/2's preface": strings.NewReader("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			s := connect(t, r.address)
			_, _ = io.Copy(s, garbage) // may be cut while it writes
			_ = s.CloseWrite()
			extend(t, s, patience)
			if _, err := io.Copy(io.Discard, s); isTimeout(err) {
				t.Error("the connection was left open")
			}
			mustPing(t, conn, "unharmed")
		})
	}
	if grown := r.server.RSS() - before; grown > 64<<20 {
		t.Errorf("the server has grown by %d MiB", grown>>20)
	}
}

// Nonsense inside of a WebSocket that was let in ends that carrier only: the session resumes.
func TestGarbageInsideOfACarrier(t *testing.T) {
	t.Parallel()
	masked := func(first, second byte, rest ...byte) []byte { return append([]byte{first, second | 0x80}, rest...) }
	for _, c := range []struct {
		name string
		up   []byte // to the server
		down []byte // to the client
	}{
		{
			"a message of a GiB",
			append(masked(0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4), make([]byte, 1<<20)...),
			append([]byte{0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 0}, make([]byte, 1<<20)...),
		},
		{
			"a negative length", masked(0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4),
			[]byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		},
		{"text", masked(0x81, 2, 0, 0, 0, 0, 'h', 'i'), []byte{0x81, 2, 'h', 'i'}},
		{"a reserved bit", masked(0xc2, 2, 0, 0, 0, 0, 'h', 'i'), []byte{0xc2, 2, 'h', 'i'}},
		{"a message of the link that is none", masked(0x82, 3, 0, 0, 0, 0, 0xff, 0xff, 0xff), []byte{0x82, 3, 0xff, 0xff, 0xff}},
		{"a frame masked wrongly", []byte{0x82, 2, 'h', 'i'}, masked(0x82, 2, 0, 0, 0, 0, 'h', 'i')},
		{"fragments without an end", fragments(true), fragments(false)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			r := newRig(t, config{client: append(local(target), "--max-backoff", "300ms")})
			conn := connect(t, r.forward(target))
			mustPing(t, conn, "before")
			memory := r.server.RSS() + r.client.RSS()
			for d, garbage := range map[netfault.Direction][]byte{netfault.Up: c.up, netfault.Down: c.down} {
				r.relay.Inject(d, garbage)
				r.client.Expect(patience, "session lost")
				r.client.Expect(patience, "session resumed")
				mustPing(t, conn, "after")
			}
			if grown := r.server.RSS() + r.client.RSS() - memory; grown > 64<<20 {
				t.Errorf("the agents have grown by %d MiB", grown>>20)
			}
		})
	}
}

// fragments is one message of 64 KiB frames, larger than any that is accepted, which does not end.
func fragments(mask bool) []byte {
	var all []byte
	for i := range 64 {
		opcode, length := byte(0x00), byte(127)
		if i == 0 {
			opcode = 0x02
		}
		if mask {
			length |= 0x80
		}
		all = append(all, opcode, length, 0, 0, 0, 0, 0, 1, 0, 0)
		if mask {
			all = append(all, 0, 0, 0, 0)
		}
		all = append(all, make([]byte, 1<<16)...)
	}
	return all
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool })
	return ok && timeout.Timeout()
}

// repeat is an endless repetition of text.
func repeat(text string) io.Reader { return &repeater{text: text} }

type repeater struct {
	text string
	at   int
}

func (r *repeater) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.text[r.at]
		r.at = (r.at + 1) % len(r.text)
	}
	return len(p), nil
}
