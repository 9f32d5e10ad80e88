package attack

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/test/agent"
)

// hostile is a session of a client with a valid token that keeps to no rule but those of
// the link, without which nothing that it sends is looked at.
type hostile struct {
	conn     net.Conn
	mu       sync.Mutex // for writing
	sent     uint64
	received atomic.Uint64 // acknowledged by what is sent
	out      []byte
}

// newHostile opens a session.
func newHostile(t testing.TB, server string) *hostile {
	s := openSession(t, server, bearer(tokenOfBob))
	_ = s.SetDeadline(time.Time{})
	return &hostile{conn: s.Conn, sent: s.sent}
}

// read reads until the connection ends. With acknowledge it notes what there was.
func (h *hostile) read(acknowledge bool) {
	s := &session{raw: newRaw(nil, h.conn)}
	_ = h.conn.SetDeadline(time.Time{})
	for {
		head := make([]byte, 2)
		if _, err := io.ReadFull(s.r, head); err != nil {
			return
		}
		length := uint64(head[1])
		if extra := map[byte]int{126: 2, 127: 8}[head[1]]; extra > 0 {
			var b [8]byte
			if _, err := io.ReadFull(s.r, b[8-extra:]); err != nil {
				return
			}
			length = binary.BigEndian.Uint64(b[:])
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(s.r, payload); err != nil {
			return
		}
		if acknowledge && head[0] == 0x82 && length > 21 {
			h.received.Store(binary.BigEndian.Uint64(payload[1:]) + length - 21)
		}
	}
}

// add puts a frame into the next message.
func (h *hostile) add(command byte, stream uint32, payload []byte) {
	h.out = append(h.out, 2, command)
	h.out = binary.LittleEndian.AppendUint16(h.out, uint16(len(payload)))
	h.out = binary.LittleEndian.AppendUint32(h.out, stream)
	h.out = append(h.out, payload...)
}

// record puts a record into the next message.
func (h *hostile) record(kind byte, id uint32, body string) {
	b := binary.BigEndian.AppendUint16([]byte{kind}, uint16(4+len(body)))
	h.add(framePSH, controlStream, append(binary.BigEndian.AppendUint32(b, id), body...))
}

// open puts a stream into the next message.
func (h *hostile) open(stream uint32, kind byte, target string) {
	h.add(frameSYN, stream, nil)
	h.add(framePSH, stream, append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(target))), target...))
}

// send sends what was put together.
func (h *hostile) send() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := binary.BigEndian.AppendUint64([]byte{1}, h.sent)
	m = sealed(append(binary.BigEndian.AppendUint64(m, h.received.Load()), h.out...))
	h.sent += uint64(len(h.out))
	h.out = h.out[:0]
	b := binary.BigEndian.AppendUint64([]byte{0x82, 0x80 | 127}, uint64(len(m)))
	_, err := h.conn.Write(append(append(b, 0, 0, 0, 0), m...))
	return err
}

// inSessions attacks in n sessions. send puts the next message together, forever or until
// it says that there is nothing more.
func inSessions(n int, acknowledge bool, send func(h *hostile, round uint32) (more bool)) func(ctx context.Context, t *testing.T, server string) {
	return func(ctx context.Context, t *testing.T, server string) {
		var all sync.WaitGroup
		defer all.Wait()
		for range n {
			h := newHostile(t, server)
			defer context.AfterFunc(ctx, func() { h.conn.Close() })()
			all.Go(func() { h.read(acknowledge) })
			all.Go(func() {
				for round := uint32(0); ctx.Err() == nil; round++ {
					more := send(h, round)
					if h.send() != nil || !more {
						return
					}
				}
			})
		}
		<-ctx.Done()
	}
}

// deafTarget accepts connections and reads nothing, until the test ends.
func deafTarget(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String() // the system accepts
}

const (
	recordWindow   = 1
	recordUnlisten = 7
)

// each are n numbers of streams, others in each round.
func each(round uint32, n int) (ids []uint32) {
	for i := range uint32(n) {
		ids = append(ids, 5+2*(round*uint32(n)+i))
	}
	return ids
}

// maxSessions of an identity there are by default.
const maxSessions = 64

// attacks are what a client with a valid token may try, each until ctx ends. deaf is a
// target that reads nothing.
func attacks(deaf string) map[string]func(ctx context.Context, t *testing.T, server string) {
	const reset = "\x0b" // cancelled
	return map[string]func(ctx context.Context, t *testing.T, server string){
		"streams without headers": inSessions(maxSessions, true, func(h *hostile, round uint32) bool {
			for _, id := range each(round, 1000) {
				h.add(frameSYN, id, nil)
			}
			return true
		}),
		"streams that do nothing": inSessions(maxSessions, true, func(h *hostile, round uint32) bool {
			for _, id := range each(round, 100) {
				h.open(id, 1, deaf)
			}
			return round < 100
		}),
		"downloads that nobody takes": inSessions(maxSessions, false, func(h *hostile, round uint32) bool {
			for _, id := range each(round, 4) {
				h.open(id, 3, "chargen")
				h.record(recordWindow, id, "\x00\x00\x00\xff\x00\x00\x00\x00")
			}
			return false
		}),
		"uploads that nobody takes": inSessions(maxSessions, true, func(h *hostile, round uint32) bool {
			id := 5 + 2*(round/5)
			if round%5 == 0 {
				h.open(id, 1, deaf)
				return round < 500
			}
			h.add(framePSH, id, make([]byte, 60_000))
			return true
		}),
		"streams opened and reset": inSessions(8, true, func(h *hostile, round uint32) bool {
			for _, id := range each(round, 100) {
				h.open(id, 1, deaf)
				h.record(recordReset, id, reset)
			}
			return true
		}),
		"resets of nothing": inSessions(8, true, func(h *hostile, _ uint32) bool {
			for id := range uint32(1000) {
				h.record(recordReset, id, reset)
			}
			return true
		}),
		"listeners made and given up": inSessions(8, true, func(h *hostile, _ uint32) bool {
			for id := range uint32(10) {
				h.record(recordListen, id, "127.0.0.1:0")
				h.record(recordUnlisten, id, "")
			}
			return true
		}),
		"listens that are denied": inSessions(8, true, func(h *hostile, round uint32) bool {
			for id := range uint32(100) {
				h.record(recordListen, 100*round+id, "0.0.0.0:80")
			}
			return true
		}),
		"dials that are denied": inSessions(8, true, func(h *hostile, round uint32) bool {
			for _, id := range each(round, 100) {
				h.open(id, 1, "169.254.169.254:80")
			}
			return true
		}),
		"frames and records that mean nothing": inSessions(8, true, func(h *hostile, _ uint32) bool {
			for range 500 {
				h.add(3, 0, nil)
				h.add(4, 5, make([]byte, 8))
				h.record(99, 0, "")
				h.record(recordWindow, 5, "\x00\x00\x00\x00\x00\x00\x00\x00")
			}
			return true
		}),
		"one session resumed by fifty": resumeStorm,
		"pipes that are filled":        pipesFilled,
	}
}

// A client with a valid token, whatever it sends, takes no more of a server's memory than
// --memory and 128 MiB, and does not keep another client from its echo. How long an echo
// takes is printed and bounded loosely, since the machine may be busy otherwise.
func TestValidTokenInHostileHands(t *testing.T) {
	programs, err := agent.Build(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	var worst struct {
		memory        int64
		p99           time.Duration
		largest, slow string
	}
	for _, name := range slices.Sorted(maps.Keys(attacks(""))) {
		t.Run(name, func(t *testing.T) {
			const memory = 64 << 20
			server, process := startProcess(t, programs, "--memory", "64MiB")
			good := newApp(t, startClient(t, server, tokenOfAlice, startEcho(t)))
			good.echo()
			_, before := good.latency(500 * time.Millisecond)
			startAttacker(t, name, server)
			ctx, cancel := context.WithCancel(t.Context())
			peak := make(chan int64)
			go func() {
				most := int64(0)
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for ctx.Err() == nil {
					most = max(most, process.RSS())
					<-tick.C
				}
				peak <- most
			}()
			p50, p99 := good.latency(2 * time.Second)
			cancel()
			most := <-peak
			t.Logf("%d MiB at most; echo before: p99 %v, beside: p50 %v, p99 %v", most>>20, before, p50, p99)
			if most > memory+128<<20 {
				t.Errorf("the server takes %d MiB, want --memory (%d MiB) and 128 at most", most>>20, memory>>20)
			}
			if p50 > time.Second {
				t.Errorf("a good client waits %v", p50)
			}
			if most > worst.memory {
				worst.memory, worst.largest = most, name
			}
			if p99 > worst.p99 {
				worst.p99, worst.slow = p99, name
			}
		})
	}
	t.Logf("worst: %d MiB (%s), echo p99 %v (%s)", worst.memory>>20, worst.largest, worst.p99, worst.slow)
}

// attackVariable names the attack and the server for a process that attacks.
const attackVariable = "CULVERT_TEST_ATTACK"

// startAttacker attacks from a process of its own until the test ends. It has the lowest
// priority, since what it takes of this machine is not what is tested.
func startAttacker(t *testing.T, name, server string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nice", "-n", "19", self, "-test.run", "^TestAttacker$")
	cmd.Env = append(os.Environ(), attackVariable+"="+server+" "+name)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := agent.Start(t, "attacker", cmd)
	t.Cleanup(func() {
		stdin.Close()
		if code := p.Exit(patience); code != 0 {
			t.Errorf("the attacker failed")
		}
	})
	p.ExpectText(patience, "attacking")
}

// TestAttacker is the process of startAttacker. Without the variable it does nothing.
func TestAttacker(t *testing.T) {
	server, name, attacker := strings.Cut(os.Getenv(attackVariable), " ")
	if !attacker {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	attack := attacks(deafTarget(t))[name]
	_, _ = os.Stdout.WriteString("attacking\n")
	attack(ctx, t, server)
}

// startProcess runs a server of its own process, whose memory can be measured.
func startProcess(t *testing.T, programs agent.Programs, options ...string) (addr string, p *agent.Process) {
	t.Helper()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte(tokenOfAlice+"\n"+tokenOfBob+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = agent.Start(t, "server", agent.Command(programs.Server, append([]string{
		"--listen", "127.0.0.1:0", "--token-file", tokens, "--log-format", "json",
	}, options...)...))
	return p.Expect(patience, "server listening").Attrs["address"], p
}

// resumeStorm has fifty connections present the hello of one session, again and again.
func resumeStorm(ctx context.Context, t *testing.T, server string) {
	text := upgrade(hello(sessionID(), false, 0), bearer(tokenOfBob))
	var all sync.WaitGroup
	defer all.Wait()
	for range 50 {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := dialFrom(ctx, server, "")
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				c := newRaw(t, conn)
				if resp, _, err := c.try(text); err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
					_, _ = io.Copy(io.Discard, c.r) // until it is displaced
				}
				stop()
				conn.Close()
			}
		})
	}
}

// pipesFilled opens as many HTTP pipes as one identity may have, and fills each.
func pipesFilled(ctx context.Context, t *testing.T, server string) {
	var all sync.WaitGroup
	defer all.Wait()
	for range 128 {
		all.Go(func() {
			id := sessionID()
			body := strings.Repeat("x", 1<<20)
			for offset := 0; ctx.Err() == nil; {
				conn, err := dialFrom(ctx, server, "")
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				_, _, _ = newRaw(t, conn).try(fmt.Sprintf("POST / HTTP/1.1\r\nHost: culvert.test\r\n%s\r\nCulvert-Pipe: %s\r\nCulvert-Offset: %d\r\n"+
					"Content-Type: application/octet-stream\r\nCache-Control: no-store, no-transform\r\nContent-Length: %d\r\n\r\n%s",
					bearer(tokenOfBob), base64.RawURLEncoding.EncodeToString(id[:]), offset, len(body), body))
				stop()
				conn.Close()
			}
		})
	}
}
