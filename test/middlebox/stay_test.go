package middlebox

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"culvert/test/agent"
)

// long tells whether to take the time that the product's promises are about.
func long() bool { return os.Getenv("CULVERT_LONG") == "1" }

// place is where a test's targets listen and from where it connects to the client's forwards.
type place struct {
	listen func(address string) (net.Listener, error)
	dial   func(address string) (net.Conn, error)
}

var here = place{
	listen: func(address string) (net.Listener, error) { return net.Listen("tcp", address) },
	dial:   func(address string) (net.Conn, error) { return net.DialTimeout("tcp", address, patience) },
}

// serve has handle serve each connection to a port of loopback, and returns its address.
func (p place) serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	listener, err := p.listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			running.Go(func() {
				handle(conn)
				conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return listener.Addr().String()
}

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

// connect opens a connection that ends with the test.
func (p place) connect(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := p.dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask says word on conn and returns how long the echo took.
func ask(t *testing.T, conn net.Conn, word string) time.Duration {
	t.Helper()
	start := time.Now()
	conn.SetDeadline(start.Add(4 * patience))
	if _, err := io.WriteString(conn, word); err != nil {
		t.Fatalf("%s: %v", word, err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
		t.Fatalf("%s: echo %q, %v", word, got, err)
	}
	return time.Since(start)
}

// pieces is a download of random pieces with a pause after each, and their checksum in the end.
func pieces(size int, pause, length time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		sum, piece := sha256.New(), make([]byte, size)
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		for start := time.Now(); time.Since(start) < length; <-ticker.C {
			rand.Read(piece)
			sum.Write(piece)
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
		_, _ = conn.Write(sum.Sum(nil))
	}
}

// receive reads a download of pieces to its end, and returns the longest time without a byte. whole is
// false if what came is not what was sent.
func receive(conn net.Conn) (size int, longest time.Duration, whole bool) {
	sum := sha256.New()
	var tail []byte
	buf := make([]byte, 64<<10)
	last := time.Now()
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			longest = max(longest, time.Since(last))
			last = time.Now()
		}
		size += n
		tail = append(tail, buf[:n]...)
		if most := len(tail) - sha256.Size; most > 0 {
			sum.Write(tail[:most])
			tail = append(tail[:0], tail[most:]...)
		}
		if err != nil {
			return size, longest, err == io.EOF && bytes.Equal(tail, sum.Sum(nil))
		}
	}
}

// wait is how long a new connection waited for its first echo.
type wait struct {
	at   time.Time
	took time.Duration
}

// knock opens one connection after the other until done is closed.
func (p place) knock(t *testing.T, address string, every time.Duration, done <-chan struct{}) (waits []wait) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return waits
		case <-ticker.C:
		}
		start := time.Now()
		conn, err := p.dial(address)
		if err != nil {
			t.Errorf("a new connection: %v", err)
			return waits
		}
		ask(t, conn, "knock")
		conn.Close()
		waits = append(waits, wait{start, time.Since(start)})
	}
}

func longest(waits []wait) (most time.Duration) {
	for _, w := range waits {
		most = max(most, w.took)
	}
	return most
}

func beyond(limit time.Duration, waits []wait) (n int) {
	for _, w := range waits {
		if w.took > limit {
			n++
		}
	}
	return n
}

// staysUsable checks what survives does, and that after the first carriers, of which the client learns, not
// more than losses in all die. One of them may not be believed: boxes can be slow to begin with what they do.
func (p place) staysUsable(t *testing.T, client *agent.Process, echoing, slow string, losses int) {
	t.Helper()
	p.survives(t, client, echoing, slow)
	t.Logf("the heartbeat is now %s", client.Find(patience, "idle limit learned").Attrs["heartbeat"])
	if lost := client.Count("session lost"); lost > losses {
		t.Errorf("%d carriers were lost, want %d at most", lost, losses)
	}
}

// survives checks that silence costs the user of a connection nothing, and that a download which is silent
// for longer than the box bears arrives whole.
func (p place) survives(t *testing.T, client *agent.Process, echoing, slow string) {
	t.Helper()
	quiet := p.connect(t, client.Find(patience, "forward listening", "forward", echoing).Attrs["address"])
	download := p.connect(t, client.Find(patience, "forward listening", "forward", slow).Attrs["address"])
	ask(t, quiet, "before")
	var running sync.WaitGroup
	done := make(chan struct{})
	running.Go(func() {
		defer close(done)
		size, _, whole := receive(download)
		t.Logf("a download with pauses: %d bytes", size)
		if !whole || size == 0 {
			t.Errorf("a download with pauses did not arrive whole: %d bytes", size)
		}
	})
	<-time.After(30 * time.Second)
	after := ask(t, quiet, "after")
	t.Logf("echo after 30 s of silence: %v", after)
	if after > time.Second {
		t.Errorf("the echo after 30 s of silence took %v", after)
	}
	t.Logf("a new connection then waits %v", ask(t, p.connect(t, client.Find(patience, "forward listening", "forward", echoing).Attrs["address"]), "new"))
	running.Wait()
	t.Logf("%d carriers were lost", client.Count("session lost"))
}
