package reservetest

import (
	"os"
	"syscall"
	"testing"

	"culvert/mux/carrier/reserve"
)

// Limit lets the process have at most so many descriptors until the test ends.
func Limit(tb testing.TB, most int) {
	tb.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		tb.Fatal(err)
	}
	now := before
	now.Cur = uint64(most)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			tb.Error(err)
		}
	})
}

// Kept fails the test unless files can be opened, as many as are kept in reserve but for a
// few that others of the process may use at the moment.
func Kept(tb testing.TB) {
	tb.Helper()
	for range reserve.Descriptors - 8 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			tb.Fatalf("there is no reserve: %v", err)
		}
		defer f.Close()
	}
}
