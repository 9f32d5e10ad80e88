package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/test/bubble"
	"culvert/tunnel/bandwidth"
)

const bobsToken = "another-horse-and-its-staple"

// limited is a directory of alice, who has goodToken, and bob, who has bobsToken, both
// with the same limits and free to go wherever they like.
func limited(t testing.TB, l auth.Limits) *auth.Directory {
	t.Helper()
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{
		{Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(goodToken))}}, Policy: auth.Everything(), Limits: l},
		{Name: "bob", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(bobsToken))}}, Policy: auth.Everything(), Limits: l},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sharing is a directory of alice with these shared limits.
func sharing(t testing.TB, shared auth.Limits) *auth.Directory {
	t.Helper()
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{
		{Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(goodToken))}}, Policy: auth.Everything(), Shared: shared},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testUsages(t testing.TB, l auth.Limits) *usages {
	t.Helper()
	return newUsages(&ServerConfig{Guard: auth.NewGuard(limited(t, l)), Settings: Settings{Memory: 1 << 20, Logger: slog.New(slog.DiscardHandler)}})
}

// entered is a stream that counts for u, and its far end.
func entered(t testing.TB, u *usage) (near *metered, far *fakeStream) {
	t.Helper()
	if err := u.enter(); err != nil {
		t.Fatal(err)
	}
	st, far := newFakeStreams(mux.Header{})
	return u.meter(st, nil), far
}

func wantLimit(t testing.TB, err error, limit string) {
	t.Helper()
	var e *mux.Error
	if !errors.As(err, &e) || e.Code != mux.Limit || e.Reason != "limit reached: "+limit {
		t.Errorf("%v, want the limit of %s", err, limit)
	}
}

// The streams of all sessions of an identity count together, those of another do
// not, and a stream that has ended does not any more.
func TestStreamLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{Streams: 2})
		u := us.join("alice")
		if again := us.join("alice"); again != u {
			t.Fatal("two sessions of an identity count apart")
		}
		_, far := entered(t, u)
		_, other := entered(t, u)
		wantLimit(t, u.enter(), limitStreams)
		_, bobs := entered(t, us.join("bob"))

		far.peer.Close()
		synctest.Wait()
		_, third := entered(t, u)
		wantLimit(t, u.enter(), limitStreams)

		us.guard.Use(limited(t, auth.Limits{Streams: 3}))
		_, fourth := entered(t, u)
		wantLimit(t, u.enter(), limitStreams)
		for _, f := range []*fakeStream{other, bobs, third, fourth} {
			f.peer.Close()
		}
		synctest.Wait()
	})
}

func TestOpensLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{OpensPerSecond: 5})
		alice, bob := us.join("alice"), us.join("bob")
		opens := func(u *usage) (n int) {
			for u.bound(time.Now()) == "" {
				n++
			}
			return n
		}
		if n := opens(alice); n != 5 {
			t.Errorf("%d at once, want 5", n)
		}
		wantLimit(t, alice.enter(), limitOpens)
		time.Sleep(200 * time.Millisecond)
		if n := opens(alice); n != 1 {
			t.Errorf("%d after a fifth of a second, want 1", n)
		}
		us.opens.Set(3, 3, time.Now())
		if n := opens(bob); n != 3 {
			t.Errorf("%d of another at once, want the server's 3", n)
		}
		wantLimit(t, bob.enter(), limitAllOpens)
	})
}

// Who leaves and comes back at once finds its limits as they were.
func TestLimitsOfWhoComesBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const opens, rate = 5, 1000
		us := testUsages(t, auth.Limits{OpensPerSecond: opens, Upload: rate})
		comeBack := func() (n int) {
			u := us.join("alice")
			defer us.leave(u)
			for u.bound(time.Now()) == "" {
				u.exit()
				n++
			}
			return n
		}
		took := func() (n int) {
			u := us.join("alice")
			defer us.leave(u)
			var turn bandwidth.Turn
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			for {
				k := u.up.Take(ctx.Done(), &turn, rate)
				if k == 0 {
					return n
				}
				n += k
			}
		}
		if n := comeBack(); n != opens {
			t.Errorf("%d opens at first, want %d", n, opens)
		}
		if n := comeBack(); n != 0 {
			t.Errorf("%d opens by coming back, want none", n)
		}
		if n := took(); n < rate/2 {
			t.Errorf("%d bytes at first, want some", n)
		}
		if n := took(); n != 0 {
			t.Errorf("%d bytes by coming back, want none", n)
		}
		time.Sleep(time.Minute)
		if n := comeBack(); n != opens {
			t.Errorf("%d opens a minute later, want %d", n, opens)
		}
		time.Sleep(time.Minute)
		us.leave(us.join("bob"))
		if n := len(us.of); n != 0 {
			t.Errorf("%d identities in mind, want none", n)
		}
	})
}

// The bytes of a day, both ways, of all streams: then streams end and there are no
// new ones until midnight, also for who comes back.
func TestDayLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{BytesPerDay: 1000})
		u := us.join("alice")
		near, far := entered(t, u)
		if _, err := near.Write(make([]byte, 600)); err != nil {
			t.Fatal(err)
		}
		received := newHalf()
		ended := make(chan error, 1)
		near.Deliver(taker{received, new(atomic.Int64)}, func(_ int64, err error) { ended <- err })
		far.Write(make([]byte, 400))
		synctest.Wait()
		far.Write(make([]byte, 1))
		wantLimit(t, <-ended, limitDay)
		wantLimit(t, context.Cause(near.Context()), limitDay)
		if received.fill() != 400 {
			t.Errorf("%d bytes received, want 400", received.fill())
		}
		wantLimit(t, u.enter(), limitDay)
		synctest.Wait()
		us.leave(u)
		u = us.join("alice")
		wantLimit(t, u.enter(), limitDay)
		time.Sleep(time.Until(time.Now().Truncate(24 * time.Hour).Add(24 * time.Hour)))
		near, far = entered(t, u)
		if _, err := near.Write(make([]byte, 999)); err != nil {
			t.Error(err)
		}
		near.Close()
		far.Close()
		synctest.Wait()
		us.leave(u)
		time.Sleep(24 * time.Hour)
		us.leave(us.join("bob"))
		if len(us.of) != 0 {
			t.Errorf("%d identities are remembered", len(us.of))
		}
	})
}

// taker is a connection that takes everything, and counts what it takes without
// being waited for.
type taker struct {
	*half
	atOnce *atomic.Int64
}

func (w taker) Write(p []byte) (int, error) { return w.write(p) }

func (w taker) TryWrite(p []byte) (int, error) {
	w.atOnce.Add(int64(len(p)))
	return w.Write(p)
}

// What waits for bandwidth ends with its stream, at once, in both directions.
func TestResetWhileWaiting(t *testing.T) {
	for name, l := range map[string]auth.Limits{"upload": {Upload: 1}, "download": {Download: 1}} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				us := testUsages(t, l)
				near, far := entered(t, us.join("alice"))
				app, ours := net.Pipe()
				_, done := startRelay(ours, near)
				if name == "upload" {
					go io.Copy(far, repeat{})
				} else {
					go io.Copy(app, repeat{})
				}
				go io.Copy(io.Discard, app)
				go io.Copy(io.Discard, far)
				time.Sleep(time.Minute)
				start := time.Now()
				far.Reset(mux.ResetByPeer, "test")
				<-done
				if d := time.Since(start); d > 0 {
					t.Errorf("the relay went on for %v", d)
				}
				app.Close()
			})
		})
	}
}

type repeat struct{}

func (repeat) Read(p []byte) (int, error) { return len(p), nil }

// Each way of a relay has the rate of its limit, and the other way is not bounded by it.
func TestRelayBandwidth(t *testing.T) {
	const rate = 300_000
	for name, l := range map[string]auth.Limits{"upload": {Upload: rate}, "download": {Download: rate}} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				us := testUsages(t, l)
				near, far := entered(t, us.join("alice"))
				app, ours := net.Pipe()
				_, done := startRelay(ours, near)
				source, drain := io.Writer(far), io.Reader(app)
				freeSource, freeDrain := io.Writer(app), io.Reader(far)
				if name == "download" {
					source, drain, freeSource, freeDrain = freeSource, freeDrain, source, drain
				}
				go io.Copy(source, repeat{})
				var got, pause atomic.Int64
				go func() {
					last := time.Now()
					buf := make([]byte, 64<<10)
					for {
						n, err := drain.Read(buf)
						if err != nil {
							return
						}
						got.Add(int64(n))
						pause.Store(max(pause.Load(), int64(time.Since(last))))
						last = time.Now()
					}
				}()
				start := time.Now()
				go freeSource.Write(make([]byte, 10*rate))
				if _, err := io.ReadFull(freeDrain, make([]byte, 10*rate)); err != nil || time.Since(start) > time.Second {
					t.Errorf("the way that has no limit took %v, %v", time.Since(start), err)
				}
				time.Sleep(10*time.Second - time.Since(start))
				if off := float64(got.Load())/(10*rate) - 1; math.Abs(off) > 0.05 {
					t.Errorf("%d bytes in ten seconds, %+.1f %% from the limit", got.Load(), 100*off)
				}
				far.Reset(mux.ResetByPeer, "test")
				<-done
				app.Close()
				synctest.Wait()
				if longest := time.Duration(pause.Load()); longest > 100*time.Millisecond {
					t.Errorf("a pause of %v", longest)
				}
			})
		})
	}
}

// Without a limit, bytes go straight to the connection; a limit that comes later is
// obeyed, and one that is lifted is forgotten.
func TestLimitComesLater(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us := testUsages(t, auth.Limits{})
		near, far := entered(t, us.join("alice"))
		w := near
		took := taker{newHalf(), new(atomic.Int64)}
		deliver := &meteredWriter{took, &w.up}
		if n, _ := deliver.TryWrite(make([]byte, 100)); n != 100 {
			t.Errorf("%d bytes at once without a limit, want 100", n)
		}
		for range 2 {
			us.guard.Use(limited(t, auth.Limits{Upload: 1000}))
			if n, _ := deliver.TryWrite(make([]byte, 100)); n != 0 {
				t.Errorf("%d bytes at once with a limit, want 0", n)
			}
			us.guard.Use(limited(t, auth.Limits{}))
			if n, _ := deliver.TryWrite(make([]byte, 100)); n != 100 {
				t.Errorf("%d bytes at once with the limit lifted, want 100", n)
			}
		}
		near.Close()
		far.Close()
		synctest.Wait()
	})
}

// All subjects of an identity have the shared limits together, on top of their own.
func TestSharedLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		shared := func(own, all auth.Limits) *auth.Directory {
			d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{{Name: "ops", Limits: own, Shared: all}, {Name: "dev"}}})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		us := testUsages(t, auth.Limits{})
		us.guard.Use(shared(auth.Limits{Streams: 2}, auth.Limits{Streams: 3}))
		a, b, other := us.join("ops/a"), us.join("ops/b"), us.join("dev/a")
		_, first := entered(t, a)
		_, second := entered(t, a)
		wantLimit(t, a.enter(), limitStreams)
		_, third := entered(t, b)
		wantLimit(t, b.enter(), limitSharedStreams)
		for range 4 {
			_, far := entered(t, other)
			far.peer.Close()
		}
		first.peer.Close()
		synctest.Wait()
		_, fourth := entered(t, b)
		for _, f := range []*fakeStream{second, third, fourth} {
			f.peer.Close()
		}
		synctest.Wait()

		us.guard.Use(shared(auth.Limits{OpensPerSecond: 2}, auth.Limits{OpensPerSecond: 3}))
		for _, u := range []*usage{a, a, b} {
			if limit := u.bound(time.Now()); limit != "" {
				t.Errorf("reached: %s", limit)
			}
			u.exit()
		}
		wantLimit(t, a.enter(), limitOpens)
		us.leave(b)
		b = us.join("ops/b")
		wantLimit(t, b.enter(), limitSharedOpens)

		us.guard.Use(shared(auth.Limits{}, auth.Limits{BytesPerDay: 1000}))
		near, far := entered(t, a)
		if _, err := near.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		wantLimit(t, b.enter(), limitSharedDay)
		if _, err := near.Write(make([]byte, 1)); err == nil {
			t.Error("a byte more")
		}
		wantLimit(t, context.Cause(near.Context()), limitSharedDay)
		far.Close()
		near.Close()
		synctest.Wait()

		us.guard.Use(shared(auth.Limits{}, auth.Limits{Upload: 1000}))
		if !a.up.Limited() || !b.up.Limited() || a.down.Limited() || other.up.Limited() {
			t.Error("the wrong ones have a bandwidth")
		}
		for _, u := range []*usage{a, b, other} {
			us.leave(u)
		}
		time.Sleep(24 * time.Hour)
		us.leave(us.join("dev/b"))
		if len(us.of) != 0 || len(us.by) != 0 {
			t.Errorf("%d and %d are remembered", len(us.of), len(us.by))
		}
	})
}

// With real sessions: a local application is reset when a limit is reached, whichever
// end listens, and both logs name the limit.
func TestLimitsOfSessions(t *testing.T) {
	guard := auth.NewGuard(limited(t, auth.Limits{Sessions: 1, Streams: 1}))
	server, addr := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	to, conns := target(t)
	client := startClient(t, addr, func(c *ClientConfig) { local(to)(c); remote(to)(c) })
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	for _, kind := range []string{"local", "remote"} {
		wantReset(t, client.listening(t, kind))
	}
	server.find(t, `msg="limit reached"`, `limit="streams of an identity"`, "client=alice")
	client.find(t, `msg="target refused"`, "code=limit", "streams of an identity")

	second := startClient(t, addr, func(c *ClientConfig) { c.RetryInitial = true })
	second.find(t, `msg="connect failed"`, "too many sessions")
	server.find(t, `msg="limit reached"`, "limit=sessions", "client=alice")

	guard.Use(sharing(t, auth.Limits{Sessions: 1}))
	third := startClient(t, addr, func(c *ClientConfig) { c.RetryInitial = true })
	third.find(t, `msg="connect failed"`, "too many sessions")

	guard.Use(limited(t, auth.Limits{}))
	second.find(t, `msg="session opened"`)
	third.find(t, `msg="session opened"`)
	app2 := connect(t, client.listening(t, "local"))
	far2 := within(t, conns, "connection to the target")
	greet(t, app2, far2)
	greet(t, app, far) // which was not touched
}

// The memory of an identity's streams that nobody reads is bounded by its limit.
func TestMemoryLimit(t *testing.T) {
	guard := auth.NewGuard(limited(t, auth.Limits{Memory: 100 << 10}))
	server, addr := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	to, conns := target(t)
	client := startClient(t, addr, local(to))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	defer far.Close() // not before
	if _, err := app.Write(make([]byte, 64<<20)); !isReset(err) {
		t.Errorf("the application whose target does not read sees %v, want a reset", err)
	}
	server.find(t, "limit=memory")
}

// With real sessions and a real clock: under a limit of all clients together an
// identity with ten streams has as much as one with a single stream, in each
// direction.
func TestFairnessOfSessions(t *testing.T) {
	const rate, streams = 4 << 20, 10
	for _, direction := range []string{"upload", "download"} {
		t.Run(direction, func(t *testing.T) {
			guard := auth.NewGuard(limited(t, auth.Limits{}))
			_, addr := startServer(t, func(c *ServerConfig) { c.Guard, c.MaxUpload, c.MaxDownload = guard, rate, rate })
			to, conns := target(t)
			alice := startClient(t, addr, local(to))
			bob := startClient(t, addr, func(c *ClientConfig) {
				local(to)(c)
				c.Credential = func() (string, error) { return bobsToken, nil }
			})
			var total atomic.Int64
			var each [1 + streams]atomic.Int64 // the first is bob's
			for i := range each {
				client := alice
				if i == 0 {
					client = bob
				}
				from, into := connect(t, client.listening(t, "local")), within(t, conns, "connection to the target")
				if direction == "download" {
					from, into = into, from
				}
				go io.Copy(from, repeat{})
				go func() {
					buf := make([]byte, 64<<10)
					for {
						n, err := into.Read(buf)
						if err != nil {
							return
						}
						each[i].Add(int64(n))
						total.Add(int64(n))
					}
				}()
			}
			limit := time.Now().Add(20 * time.Second) // of the connections, too
			reach := func(n int64) (at [1 + streams]int64, when time.Time) {
				for total.Load() < n {
					if time.Now().After(limit) {
						t.Fatalf("only %d bytes in 20 seconds", total.Load())
					}
					time.Sleep(time.Millisecond)
				}
				for i := range each {
					at[i] = each[i].Load()
				}
				return at, time.Now()
			}
			// What went before all of them were there does not count. Who does not get
			// a core for a while has nothing to send, and others take the turns: a
			// machine that is busy may need some seconds to show one that is fair.
			first, start := reach(rate / 2)
			for second := range 12 {
				last, end := reach(int64(second+1)*rate + rate/2)
				var got string
				var sum int64
				for i := range each {
					sum += last[i] - first[i]
				}
				for i := range each {
					got += fmt.Sprintf(" %d", (last[i]-first[i])*100/sum)
				}
				took := end.Sub(start)
				t.Logf("%.2f MB/s of %.2f; %% of bob's and each of alice's ten streams:%s", float64(sum)/1e6/took.Seconds(), rate/1e6, got)
				part := float64(last[0]-first[0]) / float64(sum)
				if part > 0.4 && part < 0.6 && took > 900*time.Millisecond {
					return
				}
				first, start = last, end
			}
			t.Error("never a second with about half of the bandwidth for a single stream beside ten of another identity")
		})
	}
}
