package tunnel

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux"
	"culvert/test/bubble"
)

// fakeLister answers requests to listen by a function and remembers them.
type fakeLister struct {
	answer func(n int, bind string) (mux.Forward, error) // of the nth request

	mu       sync.Mutex
	binds    []string
	unlisten []uint32
}

func (l *fakeLister) Listen(_ context.Context, bind string) (mux.Forward, error) {
	l.mu.Lock()
	l.binds = append(l.binds, bind)
	n := len(l.binds)
	l.mu.Unlock()
	return l.answer(n, bind)
}

func (l *fakeLister) Unlisten(n uint32) { l.unlisten = append(l.unlisten, n) }

func testRemotes(t testing.TB, answer func(n int, bind string) (mux.Forward, error)) (*remotes, *fakeLister) {
	logger, _ := newJournal(t)
	l := &fakeLister{answer: answer}
	return newRemotes(l, defaults(t, Settings{}), newEvents(Settings{Logger: logger})), l
}

// A stream may be here before the answer that says which forward it is of.
func TestRemoteStreamBeforeAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r, _ := testRemotes(t, func(int, string) (mux.Forward, error) {
			<-answer
			return mux.Forward{Number: 7, Address: "127.0.0.1:8000"}, nil
		})
		go r.listen(t.Context(), &remoteForward{Forward: Forward{Port: 8000, Target: "a:1"}})
		synctest.Wait()
		got := make(chan string, 1)
		go func() {
			target, _ := r.target(t.Context(), "7")
			got <- target
		}()
		synctest.Wait()
		close(answer)
		if target := <-got; target != "a:1" {
			t.Errorf("target %q", target)
		}
		if _, err := r.target(t.Context(), "8"); err == nil {
			t.Error("unknown forward has a target")
		}
	})
}

func TestRemoteAsksForSamePort(t *testing.T) {
	f := &remoteForward{Forward: Forward{Target: "a:1"}}
	listen := func(answer func(int, string) (mux.Forward, error)) []string {
		t.Helper()
		r, l := testRemotes(t, answer)
		if _, err := r.listen(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		r.release()
		if !slices.Equal(l.unlisten, []uint32{1}) {
			t.Errorf("released %v", l.unlisten)
		}
		return l.binds
	}
	if got := listen(func(int, string) (mux.Forward, error) { return mux.Forward{Number: 1, Address: "127.0.0.1:4000"}, nil }); !slices.Equal(got, []string{"localhost:0"}) {
		t.Errorf("first asks for %q", got)
	}
	if got := listen(func(_ int, bind string) (mux.Forward, error) { return mux.Forward{Number: 1, Address: bind}, nil }); !slices.Equal(got, []string{"localhost:4000"}) {
		t.Errorf("then asks for %q", got)
	}
	got := listen(func(n int, _ string) (mux.Forward, error) {
		if n == 1 {
			return mux.Forward{}, &mux.Error{Code: mux.Refused}
		}
		return mux.Forward{Number: 1, Address: "127.0.0.1:5000"}, nil
	})
	if !slices.Equal(got, []string{"localhost:4000", "localhost:0"}) {
		t.Errorf("when that is taken, asks for %q", got)
	}
}

// A forward is asked for until the server listens, and again when the server has ended it.
func TestRemoteRetries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ended := make(chan *mux.Error, 1)
		r, l := testRemotes(t, func(n int, bind string) (mux.Forward, error) {
			if n%10 != 0 {
				return mux.Forward{}, errors.New("in use")
			}
			return mux.Forward{Number: uint32(n), Address: bind, Ended: ended}, nil
		})
		f := &remoteForward{Forward: Forward{Port: 8000, Target: "a:1"}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.keep(ctx, f, nil)
		}()
		listening := func(number int) {
			t.Helper()
			start := time.Now()
			for {
				r.mu.Lock()
				n, changed := len(r.numbers), r.changed
				r.mu.Unlock()
				if n > 0 {
					break
				}
				<-changed
			}
			synctest.Wait()
			if d := time.Since(start); len(l.binds) != number || d < time.Second || d > 10*30*time.Second || r.numbers[uint32(number)] != f {
				t.Errorf("%d requests in %v, listening as %v", len(l.binds), d, r.numbers)
			}
		}
		listening(10)
		ended <- &mux.Error{Code: mux.Refused, Reason: "taken over"}
		synctest.Wait()
		if len(r.numbers) != 0 {
			t.Error("a forward that has ended is listened for")
		}
		listening(20)
		cancel()
		<-done
		r.keep(ctx, f, &mux.Forward{}) // returns
	})
}
