package link

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"hash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	seeds   = flag.Int("seeds", 1000, "schedules that the simulation runs")
	oneSeed = flag.Uint64("seed", 0, "run the simulation with this schedule only")
)

// TestSimulation runs a client and a server over carriers in memory that cut,
// stall, delay, duplicate, corrupt and lose messages on a schedule made from a
// seed, also during handshakes, and checks that both streams arrive complete,
// in order and once. Carriers are replaced all the time, too. Time is the bubble's.
func TestSimulation(t *testing.T) {
	defer func() { t.Logf("%d carriers replaced", replacements.Load()) }()
	if *oneSeed != 0 {
		simulate(t, *oneSeed)
		return
	}
	n := *seeds
	if testing.Short() {
		n = 100
	}
	for seed := uint64(1); seed <= uint64(n) && !t.Failed(); seed++ {
		simulate(t, seed)
		if t.Failed() {
			t.Logf("repeat with: go test ./mux/link -run TestSimulation -seed %d", seed)
		}
	}
}

var replacements atomic.Int64 // of all simulations

func simulate(t *testing.T, seed uint64) {
	bubble.Test(t, func(t *testing.T) {
		w := &world{t: t, seed: seed}
		w.run()
	})
}

// dice are the choices of one actor of a simulation.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (d *dice) chance(percent int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(100) < percent
}

// upTo is a number from 1 to n.
func (d *dice) upTo(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return 1 + d.rng.IntN(n)
}

func (d *dice) pause(max time.Duration) { time.Sleep(time.Duration(d.upTo(int(max)))) }

// world is one run of the simulation.
type world struct {
	t      *testing.T
	seed   uint64
	actors uint64

	registry *Registry
	server   chan *Link
	net      *dice

	mu   sync.Mutex
	pipe *linktest.Pipe // the newest
}

// dice for one more actor.
func (w *world) dice() *dice {
	w.actors++
	return &dice{rng: rand.New(rand.NewPCG(w.seed, w.actors))}
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.server = make(chan *Link, 1)
	d := w.dice()
	w.net = w.dice()
	cfg := Config{
		ReplayBuffer: 64<<10 + d.upTo(1<<20),
		MaxMessage:   minMaxMessage + d.upTo(MaxMessage-minMaxMessage),
	}
	w.registry = NewRegistry(RegistryConfig{Config: cfg, Open: func(l *Link, _, _ string) {
		w.server <- l
		<-l.Done()
	}})
	client := New(Config{ReplayBuffer: 64<<10 + d.upTo(1<<20)})
	handle(client, nil)
	size := d.upTo(2 << 20)
	chaos, writer, answerer := w.dice(), w.dice(), w.dice()

	var maintained, traffic, faults sync.WaitGroup
	var maintainErr error
	rotation := w.dice()
	maintained.Go(func() {
		maintainErr = client.Maintain(ctx, Redial{
			Dial: w.dial, Max: time.Second,
			ReplaceAfter: func(Carrier) time.Duration { return time.Duration(rotation.upTo(int(300 * time.Millisecond))) },
			Replaced:     func(Carrier) { replacements.Add(1) },
		})
	})
	faults.Go(func() { w.faults(ctx, chaos) })

	var sent, got [2]hash.Hash
	for i := range sent {
		sent[i], got[i] = sha256.New(), sha256.New()
	}
	traffic.Go(func() { w.write(client, writer, sent[0], size) })
	traffic.Go(func() { w.read(client, got[1], size) })
	traffic.Go(func() {
		server := <-w.server
		handle(server, nil)
		traffic.Go(func() { w.write(server, answerer, sent[1], size) })
		w.read(server, got[0], size)
	})
	done := make(chan struct{})
	go func() { traffic.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Hour):
		w.t.Errorf("stuck after an hour: client %+v", client.describe())
		client.abandon(errors.New("stuck"))
	}
	for i, name := range []string{"client to server", "server to client"} {
		if string(sent[i].Sum(nil)) != string(got[i].Sum(nil)) {
			w.t.Errorf("%s: bytes differ", name)
		}
	}
	client.Close("done")
	maintained.Wait()
	if !errors.Is(maintainErr, ErrClosed) && !w.t.Failed() {
		w.t.Errorf("Maintain: %v, want %v", maintainErr, ErrClosed)
	}
	cancel()
	faults.Wait()
	w.registry.Stop()
	w.registry.Wait()
	<-done
}

func (l *Link) describe() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("attached %v received %d out %d..%d held %d unsent %d err %v",
		l.att != nil, l.received, l.out.acked, l.out.end, l.out.held, l.out.unsent, l.err)
}

// dial makes a pipe and performs the handshake, which may be cut at each step.
func (w *world) dial(_ context.Context, hello []byte) (Carrier, []byte, error) {
	d := w.net
	d.pause(50 * time.Millisecond)
	if d.chance(10) {
		return nil, nil, errors.New("connection refused")
	}
	secure := d.chance(30)
	reply, attach, cancel, err := w.registry.Admit("alice", "sim", secure, hello)
	if err != nil {
		return nil, nil, err
	}
	if d.chance(5) {
		cancel()
		return nil, nil, errors.New("upgrade failed")
	}
	pipe := linktest.NewPipe(d.upTo(20), secure)
	for _, toServer := range []bool{true, false} {
		pipe.Filter(toServer, func(m []byte) [][]byte {
			switch {
			case d.chance(2):
				return [][]byte{m, m}
			case d.chance(1):
				return nil
			case !secure && d.chance(1):
				m[d.upTo(len(m))-1] ^= 1 << (d.upTo(8) - 1)
			}
			return [][]byte{m}
		})
	}
	attach(pipe.Server)
	w.mu.Lock()
	w.pipe = pipe
	w.mu.Unlock()
	if d.chance(10) { // the answer is lost: the server believes to be attached
		pipe.Cut()
		return nil, nil, errors.New("reset during the handshake")
	}
	d.pause(50 * time.Millisecond)
	return pipe.Client, reply, nil
}

// faults cuts and stalls the present carrier now and then.
func (w *world) faults(ctx context.Context, d *dice) {
	for ctx.Err() == nil {
		d.pause(400 * time.Millisecond)
		w.mu.Lock()
		pipe := w.pipe
		w.mu.Unlock()
		if pipe == nil {
			continue
		}
		switch {
		case d.chance(40):
			pipe.Cut()
		case d.chance(30):
			up := d.chance(50)
			pipe.Hold(up, true)
			d.pause(300 * time.Millisecond)
			if d.chance(50) {
				pipe.Cut()
			}
			pipe.Hold(up, false)
		}
	}
}

func (w *world) write(l *Link, d *dice, sum hash.Hash, size int) {
	for size > 0 {
		p := make([]byte, min(size, d.upTo(100_000)))
		for i := range p {
			p[i] = byte(i*7 + size)
		}
		size -= len(p)
		sum.Write(p)
		var err error
		if d.chance(50) {
			_, err = l.Write(p)
		} else {
			i := d.upTo(len(p))
			err = l.writeFrame(p[:i], p[i:])
		}
		if err != nil {
			w.t.Errorf("write: %v", err)
			return
		}
		if d.chance(10) {
			d.pause(200 * time.Millisecond)
		}
	}
}

func (w *world) read(l *Link, sum hash.Hash, size int) {
	buf := make([]byte, 50_000)
	for size > 0 {
		n, err := l.Read(buf)
		if err != nil {
			w.t.Errorf("read: %v, %d bytes missing", err, size)
			return
		}
		sum.Write(buf[:n])
		size -= n
	}
	if size < 0 {
		w.t.Errorf("%d bytes too many", -size)
	}
}
