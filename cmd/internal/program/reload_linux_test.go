package program

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// A pipe that is written to is no change: it is read once.
func TestPipeDoesNotChange(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	path := []string{fmt.Sprintf("/proc/self/fd/%d", r.Fd())}
	before := look(path)
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path[0], time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if after := look(path); after != before {
		t.Errorf("%q, and before %q", after, before)
	}
}
