//go:build !race

package tunnel

import (
	"io"
	"testing"
)

// Neither an echo nor bulk allocates: what is left are pools that the garbage
// collector has emptied. The race detector allocates, so it does not build this.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	app, far := tunnelled(t, false)
	go func() {
		buf := make([]byte, 256<<10)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			far.Write(buf[:n])
		}
	}()
	for _, size := range []int{64, 256 << 10} {
		p, got := make([]byte, size), make([]byte, size)
		echo := func() {
			app.Write(p)
			if _, err := io.ReadFull(app, got); err != nil {
				t.Fatal(err)
			}
		}
		for range 200 { // windows have grown, the path is known
			echo()
		}
		if n := testing.AllocsPerRun(300, echo); n > 1 {
			t.Errorf("%v allocations for %d bytes there and back", n, size)
		}
	}
}
