//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert/test/netfault"
)

// load is something that applications do, and on what path.
type load struct {
	name        string
	tls         bool                  // between culvert's agents
	seal        bool                  // the same
	like        string                // the load that it is to be compared with; "": none
	culvertOnly bool                  // the others cannot do it, or are not asked to
	quick       bool                  // measured with -quick
	path        func(*netfault.Relay) // between the agents; nil: loopback
	warm        time.Duration         // until a bulk transfer is at its pace; 300 ms if 0
	run         func(*env) ([]result, error)
}

var loads = []load{
	{name: "bulk, 1 stream", quick: true, run: bulk(1)},
	{name: "bulk, 32 streams", run: bulk(32)},
	{name: "bulk sealed, 1 stream", seal: true, like: "bulk, 1 stream", culvertOnly: true, run: bulk(1)},
	{name: "bulk sealed, 32 streams", seal: true, like: "bulk, 32 streams", culvertOnly: true, run: bulk(32)},
	{name: "bulk over TLS, 1 stream", tls: true, culvertOnly: true, quick: true, run: bulk(1)},
	{name: "bulk over TLS, 32 streams", tls: true, culvertOnly: true, run: bulk(32)},
	{name: "64-byte echo", quick: true, run: echoAlone},
	{name: "64 echoes at once", quick: true, run: echoesAtOnce},
	{name: "echo beside 4 downloads", run: echoBeside(4, doSend, "µs")},
	{name: "connections, 32 at once", quick: true, run: connections},
	{name: "1,000 idle connections", quick: true, run: idle(1000)},
	{name: "beside 100 idle connections", culvertOnly: true, run: scale(100)},
	{name: "beside 9,000 idle connections", culvertOnly: true, run: scale(9000)}, // 18,000 files of this process
	{name: "100 unread downloads", run: stuck(doSend)},
	{name: "100 unread uploads", run: stuck(doNothing)},
	{name: "25 MB/s and 40 ms, download", path: path(25e6, 40*time.Millisecond), warm: 3 * time.Second, run: echoBeside(1, doSend, "ms")},
	{name: "100 MB/s and 100 ms, download", path: path(100e6, 100*time.Millisecond), warm: 4 * time.Second, run: bulk(1)},
	{name: "10 Mbit/s, download", path: path(1.25e6, 0), warm: 3 * time.Second, run: echoBeside(1, doSend, "ms")},
	{name: "10 Mbit/s, upload", path: path(1.25e6, 0), warm: 3 * time.Second, run: echoBeside(1, doReceive, "ms")},
	{name: "carrier cut each second", culvertOnly: true, path: path(0, 0), run: cuts},
}

// path is one of constant rate each way, in bytes per second, and round trip.
func path(rate int64, roundTrip time.Duration) func(*netfault.Relay) {
	return func(r *netfault.Relay) {
		r.Limit(rate)
		r.Delay(roundTrip / 2)
	}
}

// transfer is n bulk streams under way.
type transfer struct {
	e      *env
	counts []*atomic.Int64
	ends   sync.WaitGroup
	conns  []net.Conn
}

// begin starts n streams and waits until they are at their pace.
func (e *env) begin(n int, order byte) (*transfer, error) {
	t := &transfer{e: e}
	for range n {
		var conn net.Conn
		var err error
		if order == doReceive {
			id, count := e.target.counter()
			if conn, err = e.open(binary.BigEndian.AppendUint64([]byte{doReceive}, id)...); err != nil {
				return nil, err
			}
			t.counts = append(t.counts, count)
			t.ends.Go(func() {
				buf := make([]byte, bufferSize)
				for {
					if _, err := conn.Write(buf); err != nil {
						return
					}
				}
			})
		} else {
			if conn, err = e.open(doSend); err != nil {
				return nil, err
			}
			count := new(atomic.Int64)
			t.counts = append(t.counts, count)
			t.ends.Go(func() { receive(conn, count) })
		}
		t.conns = append(t.conns, conn)
	}
	time.Sleep(max(e.load.warm, 300*time.Millisecond))
	return t, nil
}

// bytes are how many each stream has moved so far.
func (t *transfer) bytes() []int64 {
	b := make([]int64, len(t.counts))
	for i, c := range t.counts {
		b[i] = c.Load()
	}
	return b
}

// rate is what all moved together in bytes per second while f ran, and the
// slowest stream's share of what the fastest moved.
func (t *transfer) rate(f func()) (rate, evenness float64) {
	before, started := t.bytes(), time.Now()
	f()
	after, took := t.bytes(), time.Since(started)
	var sum int64
	for i := range after {
		after[i] -= before[i]
		sum += after[i]
	}
	return float64(sum) / took.Seconds(), float64(slices.Min(after)) / max(1, float64(slices.Max(after)))
}

func (t *transfer) stop() {
	for _, conn := range t.conns {
		_ = conn.Close()
	}
	t.ends.Wait()
}

// bulk measures n streams one way and then the other.
func bulk(n int) func(*env) ([]result, error) {
	return func(e *env) ([]result, error) {
		var results []result
		for _, way := range []struct {
			name  string
			order byte
		}{{"down", doSend}, {"up", doReceive}} {
			t, err := e.begin(n, way.order)
			if err != nil {
				return results, err
			}
			before, err := e.agents.cpu()
			if err != nil {
				return results, err
			}
			rate, evenness := t.rate(func() { time.Sleep(e.window) })
			after, err := e.agents.cpu()
			if err != nil {
				return results, err
			}
			t.stop()
			results = append(results,
				result{way.name + ", MB/s", rate / 1e6},
				result{way.name + ", CPU s/GB", (after - before).Seconds() / (rate * e.window.Seconds() / 1e9)})
			if n > 1 {
				results = append(results, result{way.name + ", slowest / fastest", evenness})
			}
		}
		return results, nil
	}
}

// echo sends 64 bytes and waits for them, again and again until the time is over or stop returns true,
// and returns how long each took, in order of length.
func (e *env) echo(d time.Duration) ([]time.Duration, error) {
	conn, err := e.open(doEcho)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(d + patience))
	var took []time.Duration
	p := make([]byte, 64)
	for first, end := true, time.Now().Add(d); len(took) == 0 || time.Now().Before(end); first = false {
		started := time.Now()
		if _, err := conn.Write(p); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, p); err != nil {
			return nil, err
		}
		if !first { // which has the open in it
			took = append(took, time.Since(started))
		}
	}
	slices.Sort(took)
	return took, nil
}

// percentiles of echoes in µs or ms.
func percentiles(took []time.Duration, unit string) []result {
	scale := float64(time.Microsecond)
	if unit == "ms" {
		scale = float64(time.Millisecond)
	}
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))]) / scale }
	return []result{{"p50, " + unit, at(0.5)}, {"p99, " + unit, at(0.99)}}
}

func echoAlone(e *env) ([]result, error) {
	took, err := e.echo(e.window)
	if err != nil {
		return nil, err
	}
	return percentiles(took, "µs"), nil
}

func echoesAtOnce(e *env) ([]result, error) {
	n, err := e.echoes(64)
	return []result{{"round trips/s", float64(n) / e.window.Seconds()}}, err
}

// echoes is how many round trips n connections make together.
func (e *env) echoes(n int) (int, error) {
	var mu sync.Mutex
	var sum int
	var failed error
	var all sync.WaitGroup
	conns := make([]*env, n) // open appends to its env's connections
	for i := range conns {
		conns[i] = &env{entrance: e.entrance}
		all.Go(func() {
			took, err := conns[i].echo(e.window)
			mu.Lock()
			defer mu.Unlock()
			sum += len(took)
			failed = errors.Join(failed, err)
		})
	}
	all.Wait()
	return sum, failed
}

// echoBeside measures an echo with nothing else, n bulk streams with nothing else, and both.
func echoBeside(n int, order byte, unit string) func(*env) ([]result, error) {
	return func(e *env) ([]result, error) {
		alone, err := e.echo(e.window / 2)
		if err != nil {
			return nil, err
		}
		t, err := e.begin(n, order)
		if err != nil {
			return nil, err
		}
		defer t.stop()
		quiet, _ := t.rate(func() { time.Sleep(e.window) })
		var beside []time.Duration
		disturbed, _ := t.rate(func() { beside, err = e.echo(e.window) })
		if err != nil {
			return nil, fmt.Errorf("echo beside bulk: %w", err)
		}
		results := append(percentiles(beside, unit), result{"bulk, MB/s", quiet / 1e6}, result{"bulk with the echo, MB/s", disturbed / 1e6})
		idle := percentiles(alone, unit)[0]
		return append(results, result{"echo alone, " + idle.name, idle.value}), nil
	}
}

func connections(e *env) ([]result, error) {
	const workers = 32
	var done atomic.Int64
	var mu sync.Mutex
	var failed error
	var all sync.WaitGroup
	started := time.Now()
	for range workers {
		all.Go(func() {
			for time.Since(started) < e.window {
				if err := e.touch(); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return []result{{"connections/s", float64(done.Load()) / time.Since(started).Seconds()}}, failed
}

// touch opens a connection, has one byte echoed and closes it.
func (e *env) touch() error {
	conn, err := net.Dial("tcp", e.entrance)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte{doEcho, 'x'}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// idle opens n connections that are silent after one echo and measures what they take.
func idle(n int) func(*env) ([]result, error) {
	return func(e *env) ([]result, error) {
		before, err := e.agents.memory()
		if err != nil {
			return nil, err
		}
		if err := e.openIdle(n); err != nil {
			return nil, err
		}
		after, err := e.agents.memory()
		if err != nil {
			return nil, err
		}
		return []result{{"KiB each, both agents", float64(after-before) / 1024 / float64(n)}}, nil
	}
}

// openIdle opens n connections and has one byte echoed on each.
func (e *env) openIdle(n int) error {
	const workers = 16
	opened := make([]*env, workers)
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		mine := &env{entrance: e.entrance}
		opened[w] = mine
		all.Go(func() {
			for range n / workers {
				conn, err := mine.open(doEcho, 'x')
				if err == nil {
					_ = conn.SetReadDeadline(time.Now().Add(patience))
					_, err = io.ReadFull(conn, make([]byte, 1))
				}
				if err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	all.Wait()
	for _, o := range opened {
		e.conns = append(e.conns, o.conns...)
	}
	return errors.Join(errs...)
}

// scale measures what echoes and opens cost while n more connections are open.
func scale(n int) func(*env) ([]result, error) {
	return func(e *env) ([]result, error) {
		if err := e.openIdle(n); err != nil {
			return nil, err
		}
		before, err := e.agents.cpu()
		if err != nil {
			return nil, err
		}
		echoes, err := e.echoes(64)
		if err != nil {
			return nil, err
		}
		after, err := e.agents.cpu()
		if err != nil {
			return nil, err
		}
		opens, err := connections(e)
		return append(opens, result{"CPU µs for an echo", float64((after - before).Microseconds()) / float64(echoes)}), err
	}
}

// stuck opens connections that nobody reads at one end and measures what that takes.
func stuck(order byte) func(*env) ([]result, error) {
	return func(e *env) ([]result, error) {
		const n = 100
		alone, err := e.echo(e.window / 2)
		if err != nil {
			return nil, err
		}
		before, err := e.agents.memory()
		if err != nil {
			return nil, err
		}
		var writers sync.WaitGroup
		for range n {
			conn, err := e.open(order)
			if err != nil {
				return nil, err
			}
			if order == doNothing {
				writers.Go(func() {
					buf := make([]byte, bufferSize)
					for {
						if _, err := conn.Write(buf); err != nil {
							return
						}
					}
				})
			}
		}
		time.Sleep(e.window)
		after, err := e.agents.memory()
		if err != nil {
			return nil, err
		}
		took, err := e.echo(e.window / 2)
		for _, conn := range e.conns {
			_ = conn.Close()
		}
		writers.Wait()
		if err != nil {
			return nil, fmt.Errorf("a fresh connection beside them: %w", err)
		}
		results := append([]result{{"MiB, both agents", float64(after-before) / (1 << 20)}}, percentiles(took, "µs")...)
		undisturbed := percentiles(alone, "µs")[1]
		return append(results, result{"echo alone, " + undisturbed.name, undisturbed.value}), nil
	}
}

// cuts measures a download without and with a cut of the carrier each second, and the longest time
// without a byte.
func cuts(e *env) ([]result, error) {
	t, err := e.begin(1, doSend)
	if err != nil {
		return nil, err
	}
	defer t.stop()
	whole, _ := t.rate(func() { time.Sleep(2 * e.window) })
	var longest time.Duration
	stop := e.path.CutEvery(time.Second)
	cut, _ := t.rate(func() {
		last, since := t.counts[0].Load(), time.Now()
		for started := since; time.Since(started) < 2*e.window; time.Sleep(time.Millisecond) {
			if now := t.counts[0].Load(); now != last {
				last, since = now, time.Now()
			}
			longest = max(longest, time.Since(since))
		}
	})
	stop()
	return []result{
		{"MB/s without", whole / 1e6}, {"MB/s with", cut / 1e6},
		{"longest silence, ms", float64(longest) / float64(time.Millisecond)},
	}, nil
}
