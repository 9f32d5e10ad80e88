package tunnel

import (
	"runtime"
	"sync"
	"testing"
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
