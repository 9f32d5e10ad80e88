package program

import (
	"context"
	"log/slog"
	"runtime/debug"
	"testing"
)

// A job has the garbage collector keep to its memory while it runs, unless GOMEMLIMIT is
// set.
func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	for _, test := range []struct {
		env    string
		memory int64
		want   int64
	}{
		{"", 64 << 20, 160 << 20},
		{"", 0, before},
		{"1GiB", 64 << 20, before},
	} {
		t.Setenv("GOMEMLIMIT", test.env)
		var during int64
		job := Job{Memory: test.memory, Log: slog.New(slog.DiscardHandler), Run: func(context.Context) error {
			during = debug.SetMemoryLimit(-1)
			return nil
		}}
		if err := job.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if during != test.want {
			t.Errorf("GOMEMLIMIT %q, --memory %d: a limit of %d, want %d", test.env, test.memory, during, test.want)
		}
		if after := debug.SetMemoryLimit(-1); after != before {
			t.Errorf("the limit stays at %d", after)
		}
	}
}
