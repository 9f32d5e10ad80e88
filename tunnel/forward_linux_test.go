package tunnel

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"culvert/mux/carrier/reserve/reservetest"
)

// A forward that has accepted as many connections as it may leaves descriptors for files.
func TestForwardKeepsDescriptors(t *testing.T) {
	const most = 256
	logger, log := newJournal(t)
	ln := listenLoopback(t)
	accepted := make(chan struct{})
	f := &forwarder{
		listener: ln, target: "x:1", connectWait: 1 << 40, pending: make(chan struct{}, most),
		open: func(ctx context.Context, _ net.Addr) (stream, string, error) {
			select {
			case accepted <- struct{}{}:
				<-ctx.Done()
			case <-ctx.Done():
			}
			return nil, "", errNoSession
		},
		log: newEvents(Settings{Logger: logger}),
	}
	reservetest.Limit(t, most)
	ctx, cancel := context.WithCancel(t.Context())
	var running, conns sync.WaitGroup
	running.Go(func() { f.run(ctx, &conns) })
	defer conns.Wait()
	defer running.Wait()
	defer cancel()
	for full := false; !full; {
		conn, err := net.Dial("tcp", ln.Addr().String()) // which takes a descriptor too
		switch {
		case err == nil:
			defer conn.Close()
		case !isReset(err): // which may be so fast that even the dial sees it
			t.Fatalf("there is no reserve: %v", err)
		}
		for waits := true; waits; {
			select {
			case <-accepted:
				waits = false
			case <-log.lines:
				full = strings.Contains(log.String(), "accept failed")
				waits = !full
			}
		}
	}
	reservetest.Kept(t)
}
