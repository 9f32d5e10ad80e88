package tunnel

import (
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// idleSessions opens sessions until the test ends, and says how many bytes each takes at
// each end on average. Both ends are in this process.
func idleSessions(t testing.TB, count int) uint64 {
	_, server := startServer(t, func(c *ServerConfig) { c.MaxSessionsPerIdentity = count + 1 })
	c, _ := newTestClient(t, server, nil)
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	open := func() {
		s, err := c.newSession(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		running.Go(s.run)
		<-s.opened
	}
	open() // what is there once
	before := inUse()
	for range count {
		open()
	}
	return (inUse() - before) / uint64(count) / 2
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkIdleSession says what a session takes that nothing happens in.
func BenchmarkIdleSession(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(idleSessions(b, 200)), "bytes/session")
	}
}

// A session in which nothing happens borrows no buffer to read into.
func TestIdleSessionMemory(t *testing.T) {
	const most = 192 << 10
	if each := idleSessions(t, 100); each > most {
		t.Errorf("an idle session takes %d bytes at each end, want %d at most", each, most)
	}
}

// Connections that have something to send hold nothing of it in an outage, at either
// agent: it stays where it is until there is room for it.
func TestOutageMemory(t *testing.T) {
	const count = 200
	_, server := startServer(t, nil)
	p := newPath(t, server)
	addr, conns := target(t)
	client := startClient(t, p.addr, local(addr))
	at := client.listening(t, "local")
	var ends [2][]*net.TCPConn // applications and targets
	for range count {
		app := connect(t, at)
		far := within(t, conns, "connection to the target")
		greet(t, app, far)
		ends[0], ends[1] = append(ends[0], app), append(ends[1], far)
	}
	nowhere := listenLoopback(t)
	nowhere.Close()
	p.lead(nowhere.Addr().String())
	p.cut()
	client.find(t, "session lost")
	for i, agent := range []string{"client", "server"} {
		before := inUse()
		var writing sync.WaitGroup
		for _, conn := range ends[i] {
			writing.Go(func() {
				conn.SetWriteDeadline(time.Now().Add(time.Second))
				conn.Write(make([]byte, 16<<20)) // more than the system and a window take
			})
		}
		writing.Wait()
		const most = 20 << 10
		// The link takes a little, in all.
		if each := (int64(inUse()) - int64(before) - 1<<20) / count; each > most {
			t.Errorf("a connection that waits at the %s holds %d bytes, want %d at most", agent, each, most)
		} else {
			t.Logf("a connection that waits at the %s holds %d bytes", agent, each)
		}
	}
	runtime.KeepAlive(ends)
}
