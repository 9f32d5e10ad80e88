package attack

import (
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Many connections that present the hello of one session again and again, and keep what
// they get until the server ends it or leave it at once, cost the server neither memory nor
// the time of others.
func TestStormOfResumes(t *testing.T) {
	for name, leave := range map[string]bool{"kept": false, "left at once": true} {
		t.Run(name, func(t *testing.T) { testStorm(t, leave) })
	}
}

func testStorm(t *testing.T, leave bool) {
	server, _ := startServer(t, nil)
	echo := startEcho(t)
	bob := openSession(t, server, bearer(tokenOfBob))
	stream, _, _ := bob.open(1, echo)
	alice := openSession(t, server, bearer(tokenOfAlice))
	alice.acknowledge()
	request := upgrade(hello(alice.id, true, alice.received), bearer(tokenOfAlice))
	before := heap()

	var tries, accepted, later atomic.Int64
	began, stop := time.Now(), make(chan struct{})
	var storm sync.WaitGroup
	for range 50 {
		storm.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := dialFrom(t.Context(), server, "")
				if err != nil {
					continue
				}
				c := newRaw(t, conn)
				resp, _, err := c.try(request)
				tries.Add(1)
				switch {
				case err != nil:
				case resp.StatusCode == http.StatusSwitchingProtocols:
					accepted.Add(1)
					if !leave {
						conn.SetDeadline(began.Add(floodTime()))
						for _, err = c.r.ReadByte(); err == nil; _, err = c.r.ReadByte() {
							continue
						}
					}
				case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "1":
					later.Add(1)
				default:
					t.Errorf("answered %s", resp.Status)
				}
				conn.Close()
			}
		})
	}
	var took []time.Duration
	for time.Since(began) < floodTime() {
		at := time.Now()
		bob.echo(stream, "still here?")
		took = append(took, time.Since(at))
		<-time.After(5 * time.Millisecond)
	}
	close(stop)
	storm.Wait()
	seconds := time.Since(began).Seconds()

	slices.Sort(took)
	p99 := took[len(took)*99/100]
	grown := heap() - before
	t.Logf("%.0f handshakes a second, %.0f accepted; memory has grown by %d KiB; echo of another p99 %v",
		float64(tries.Load())/seconds, float64(accepted.Load())/seconds, grown>>10, p99.Round(time.Microsecond))
	most := 20 + 9*seconds
	if leave {
		most = 256 + 65*seconds // those of the identity
	}
	if n := accepted.Load(); float64(n) > most || later.Load() == 0 {
		t.Errorf("%d accepted in %.1f s, %d told to come later", n, seconds, later.Load())
	}
	if grown > 8<<20 {
		t.Errorf("memory has grown by %d KiB", grown>>10)
	}
}

// heap is how many bytes are in use when what can be freed is.
func heap() int64 {
	var m runtime.MemStats
	least := int64(1 << 62)
	for range 5 { // pools are emptied by the second collection, and connections end meanwhile
		runtime.GC()
		<-time.After(100 * time.Millisecond)
		runtime.ReadMemStats(&m)
		least = min(least, int64(m.HeapAlloc))
	}
	return least
}
