package test

import (
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/netfault"
)

// quick is how both agents notice within seconds what takes half a minute by default. The time for a
// handshake counts as well, since a redial may fall into the same black hole.
var quick = []string{"--heartbeat", "1s", "--heartbeat-timeout", "1s", "--handshake-timeout", "1s"}

// A path that swallows everything is noticed by both sides within heartbeat and timeout, and what was
// under way goes on when there is a path again.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	const (
		limit = 2 * time.Second         // heartbeat and timeout
		slack = 1500 * time.Millisecond // for a busy machine
	)
	target := serve(t, echo)
	r := newRig(t, config{server: quick, client: append(local(target), quick...)})
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")

	noticed := func(p *agent.Process, since time.Time, within time.Duration) {
		t.Helper()
		took := p.Expect(patience, "session lost").At.Sub(since)
		t.Logf("session lost after %v", took.Round(time.Millisecond))
		if took > within+slack {
			t.Errorf("noticed after %v, not within %v", took, within)
		}
	}

	r.relay.BlackHole(true)
	idleSince := time.Now()
	noticed(r.client, idleSince, limit)
	noticed(r.server, idleSince, limit)
	r.relay.BlackHole(false)
	back := time.Now()
	resumed := r.client.Expect(patience, "session resumed")
	t.Logf("resumed %v after the path was back", resumed.At.Sub(back).Round(time.Millisecond))
	mustPing(t, conn, "after an idle time in the dark")

	// With bytes under way the timeout alone decides.
	r.server.Forget()
	r.relay.BlackHole(true)
	busySince := time.Now()
	if _, err := io.WriteString(conn, "under way"); err != nil {
		t.Fatal(err)
	}
	noticed(r.client, busySince, limit-time.Second)
	r.relay.BlackHole(false)
	r.client.Expect(patience, "session resumed")
	got := make([]byte, len("under way"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "under way" {
		t.Fatalf("%q, %v", got, err)
	}
}

// The client dials again at once, and what waits for the session meanwhile is not refused.
func TestConnectionsWaitForTheSession(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{client: append(local(target), "--max-backoff", "200ms")})
	entrance := r.forward(target)
	r.relay.CutAfter(netfault.Up, 1) // no carrier gets anywhere
	r.relay.Cut()
	r.client.Expect(patience, "session lost")
	conn := connect(t, entrance)
	if _, err := io.WriteString(conn, "early"); err != nil {
		t.Fatal(err)
	}
	r.relay.CutAfter(netfault.Up, 0)
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "early" {
		t.Fatalf("%q, %v", got, err)
	}
	mustPing(t, conn, "and on")
}

// Readers that pause are no reason to cut anything, however many heartbeats go by with the windows full.
func TestSlowReaderIsNotADeadLink(t *testing.T) {
	t.Parallel()
	const size, pause = 64 << 20, 4 * time.Second
	verdicts := make(chan error, 2)
	down, up := serve(t, exchanger(verdicts)), serve(t, exchanger(verdicts))
	r := newRig(t, config{server: quick, client: append(append(local(down), remote(up)...), quick...)})
	var wg sync.WaitGroup
	for _, target := range []string{down, up} {
		conn := connect(t, r.forward(target))
		wg.Go(func() {
			if err := binary.Write(conn, binary.LittleEndian, request{Seed: 3, Down: size}); err != nil {
				t.Error(err)
				return
			}
			<-time.After(pause)
			if err := bothWays(conn, 3, 0, 4, size); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		if err := verdict(verdicts); err != nil {
			t.Error(err)
		}
	}
	if n := r.client.Count("session lost") + r.server.Count("session lost"); n > 0 {
		t.Errorf("the session was lost %d times", n)
	}
}

// When the window has run out, applications see a reset and not an end.
func TestExpiry(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{
		server: append([]string{"--resume-window", "1s"}, quick...),
		client: append(append(local(target), "--resume-window", "1s"), quick...),
	})
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")
	r.relay.BlackHole(true)
	r.client.Expect(patience, "session expired")
	r.server.Expect(patience, "session expired")
	wantReset(t, conn)
	r.relay.BlackHole(false)
	r.client.Expect(patience, "session opened") // of the new session
	mustPing(t, connect(t, r.forward(target)), "after")
}
