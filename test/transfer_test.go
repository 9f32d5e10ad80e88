package test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"culvert/test/netfault"
)

const interval = 200 * time.Millisecond // between two cuts of everything

func TestEcho(t *testing.T) {
	t.Parallel()
	verdicts := make(chan error, 2)
	up, down := serve(t, exchanger(verdicts)), serve(t, exchanger(verdicts))
	r := newRig(t, config{client: append(local(up), remote(down)...)})
	for seed, target := range []string{up, down} {
		conn := connect(t, r.forward(target))
		if err := exchange(conn, request{Seed: uint64(seed * 2), Up: 3 << 20, Down: 2 << 20}); err != nil {
			t.Errorf("through %s: %v", r.forward(target), err)
		}
		if err := verdict(verdicts); err != nil {
			t.Errorf("target: %v", err)
		}
	}
	if code := r.client.Stop(patience); code != 0 {
		t.Errorf("client: exit code %d", code)
	}
	if code := r.server.Stop(patience); code != 0 {
		t.Errorf("server: exit code %d", code)
	}
}

// 32 transfers, both ways through forwards of both kinds, while everything is cut five times a second.
func TestTransfersOutliveCuts(t *testing.T) {
	for _, carrier := range []string{"websocket", "http"} {
		t.Run(carrier, func(t *testing.T) { testTransfersOutliveCuts(t, carrier) })
	}
}

func testTransfersOutliveCuts(t *testing.T, carrier string) {
	const transfers = 32
	rate, size := int64(8<<20), int64(1<<20) // some 4 s; the relay's rate holds for each direction
	if full() {
		size = 3 << 20
	}
	verdicts := make(chan error, transfers)
	up, down := serve(t, exchanger(verdicts)), serve(t, exchanger(verdicts))
	r := newRig(t, config{client: append(append(local(up), remote(down)...), "--carrier", carrier)})
	entrances := []string{r.forward(up), r.forward(down)}
	r.relay.Limit(rate)
	defer r.relay.CutEvery(interval)()

	started := time.Now()
	var wg sync.WaitGroup
	for i := range transfers {
		conn := connect(t, entrances[i%2])
		wg.Go(func() {
			err := exchange(conn, request{Seed: uint64(2 * i), Up: size, Down: size})
			if err != nil {
				t.Errorf("transfer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for range transfers {
		if err := verdict(verdicts); err != nil {
			t.Fatalf("target: %v", err)
		}
	}
	took := time.Since(started)
	t.Logf("%d transfers of %d MiB each way in %v, %d carriers cut, %d resumes",
		transfers, size>>20, took.Round(time.Millisecond), r.relay.Cuts(), r.client.Count("session resumed"))
	if least := int(took/interval) / 2; r.relay.Cuts() < least {
		t.Errorf("only %d carriers were cut", r.relay.Cuts())
	}
	for _, msg := range []string{"session expired", "session closed"} {
		if r.client.Count(msg)+r.server.Count(msg) > 0 {
			t.Errorf("%s while cutting", msg)
		}
	}
}

// A file of 1 GiB each way while the WebSocket is cut five times a second.
func TestGibibyteOutlivesCuts(t *testing.T) {
	size := int64(64 << 20)
	if full() {
		size = 1 << 30
	}
	target := serve(t, digests)
	for _, kind := range []string{"-L", "-R"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, config{programs: &measured, client: []string{kind, "0:" + target}})
			conn := connect(t, r.forward(target))
			defer r.relay.CutEvery(interval)()
			started := time.Now()
			if err := upload(conn, 1, size); err != nil {
				t.Fatal(err)
			}
			took := time.Since(started)
			t.Logf("%d MiB in %v, %.0f MB/s, %d cuts", size>>20, took.Round(time.Millisecond),
				float64(size)/1e6/took.Seconds(), r.relay.Cuts())
		})
	}
}

// Carriers that die young, also in the handshake and while resuming, at a spot that moves on each time.
func TestCutsAtAnyByte(t *testing.T) {
	t.Parallel()
	verdicts := make(chan error, 2)
	up, down := serve(t, exchanger(verdicts)), serve(t, exchanger(verdicts))
	r := newRig(t, config{client: append(append(local(up), remote(down)...), "--max-backoff", "100ms")})
	entrances := []string{r.forward(up), r.forward(down)}

	results := make(chan error, 2)
	for i, entrance := range entrances {
		conn := connect(t, entrance)
		go func() { results <- exchange(conn, request{Seed: uint64(2 * i), Up: 1 << 20, Down: 1 << 20}) }()
	}
	// Short lives first, so that the handshake is cut everywhere; then long enough to get on.
	for n, step := 0, 0; ; n++ {
		limit := int64(7 + n*61)
		if limit > 4000 {
			limit, step = 200_000, step+1
		}
		before := r.relay.Cuts()
		r.relay.CutAfter(netfault.Direction(n%2), limit)
		r.relay.CutAfter(netfault.Direction(1-n%2), 0)
		r.relay.Cut()
		waitFor(t, "a cut", func() bool { return r.relay.Cuts() >= before+2 || len(results) == 2 })
		if len(results) == 2 {
			break
		}
	}
	// The applications have handed over and received everything, but their last
	// bytes may still be under way, in messages longer than a carrier lives.
	r.relay.CutAfter(netfault.Up, 0)
	r.relay.CutAfter(netfault.Down, 0)
	for range 2 {
		if err := errors.Join(<-results, verdict(verdicts)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d carriers were cut", r.relay.Cuts())
}

// Bits that flip on plain ws:// cost carriers, and never become bytes of an application.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	const size = 24 << 20
	for _, c := range []struct {
		name     string
		skip     int64
		survives bool // whether the transfers must arrive, or may be reset
	}{
		{"after the handshake", 2 << 10, true},
		{"anywhere", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			verdicts := make(chan error, 2)
			up, down := serve(t, exchanger(verdicts)), serve(t, exchanger(verdicts))
			// A length that a flip made larger is noticed by the silence that follows.
			r := newRig(t, config{
				server: quick,
				client: append(append(append(local(up), remote(down)...), "--max-backoff", "100ms"), quick...),
			})
			entrances := []string{r.forward(up), r.forward(down)}
			for _, d := range []netfault.Direction{netfault.Up, netfault.Down} {
				r.relay.FlipBits(d, 2<<20, c.skip, 42)
			}
			var wg sync.WaitGroup
			for i, entrance := range entrances {
				conn := connect(t, entrance)
				wg.Go(func() {
					err := exchange(conn, request{Seed: uint64(2 * i), Up: size, Down: size})
					if err != nil && (c.survives || errors.Is(err, errContent)) {
						t.Errorf("transfer %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			for range entrances {
				if err := verdict(verdicts); err != nil && (c.survives || errors.Is(err, errContent)) {
					t.Errorf("target: %v", err)
				}
			}
			t.Logf("%d bits flipped, %d resumes", r.relay.Flips(), r.client.Count("session resumed"))
			if c.survives && (r.relay.Flips() < 10 || r.client.Count("session resumed") < 5) {
				t.Error("the bits that flipped did no damage")
			}
		})
	}
}

// waitFor polls until done, for what no log line tells.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	if err := eventually(done); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

func eventually(done func() bool) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-ticker.C {
		if done() {
			return nil
		}
	}
	return fmt.Errorf("not within %v", patience)
}
