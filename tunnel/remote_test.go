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
	answer func(n int, bind string) (uint32, string, error) // of the nth request

	mu       sync.Mutex
	binds    []string
	unlisten []uint32
}

func (l *fakeLister) Listen(_ context.Context, bind string) (uint32, string, error) {
	l.mu.Lock()
	l.binds = append(l.binds, bind)
	n := len(l.binds)
	l.mu.Unlock()
	return l.answer(n, bind)
}

func (l *fakeLister) Unlisten(n uint32) { l.unlisten = append(l.unlisten, n) }

func testRemotes(t testing.TB, answer func(n int, bind string) (uint32, string, error)) (*remotes, *fakeLister) {
	logger, _ := newJournal(t)
	l := &fakeLister{answer: answer}
	return newRemotes(l, defaults(t, Settings{}), newEvents(Settings{Logger: logger})), l
}

// A stream may be here before the answer that says which forward it is of.
func TestRemoteStreamBeforeAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r, _ := testRemotes(t, func(int, string) (uint32, string, error) {
			<-answer
			return 7, "127.0.0.1:8000", nil
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
	listen := func(answer func(int, string) (uint32, string, error)) []string {
		t.Helper()
		r, l := testRemotes(t, answer)
		if err := r.listen(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		r.release()
		if !slices.Equal(l.unlisten, []uint32{1}) {
			t.Errorf("released %v", l.unlisten)
		}
		return l.binds
	}
	if got := listen(func(int, string) (uint32, string, error) { return 1, "127.0.0.1:4000", nil }); !slices.Equal(got, []string{"localhost:0"}) {
		t.Errorf("first asks for %q", got)
	}
	if got := listen(func(_ int, bind string) (uint32, string, error) { return 1, bind, nil }); !slices.Equal(got, []string{"localhost:4000"}) {
		t.Errorf("then asks for %q", got)
	}
	got := listen(func(n int, _ string) (uint32, string, error) {
		if n == 1 {
			return 0, "", &mux.Error{Code: mux.Refused}
		}
		return 1, "127.0.0.1:5000", nil
	})
	if !slices.Equal(got, []string{"localhost:4000", "localhost:0"}) {
		t.Errorf("when that is taken, asks for %q", got)
	}
}

func TestRemoteRetries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r, l := testRemotes(t, func(n int, bind string) (uint32, string, error) {
			if n < 10 {
				return 0, "", errors.New("in use")
			}
			return 1, bind, nil
		})
		start := time.Now()
		r.keep(t.Context(), &remoteForward{Forward: Forward{Port: 8000, Target: "a:1"}})
		if d := time.Since(start); len(l.binds) != 10 || d < time.Second || d > 9*30*time.Second {
			t.Errorf("%d requests in %v", len(l.binds), d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l.answer = func(int, string) (uint32, string, error) { return 0, "", errors.New("in use") }
		r.keep(ctx, &remoteForward{}) // returns
	})
}
