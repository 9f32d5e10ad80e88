package mux

import (
	"math"
	"testing"
	"time"
)

// WriteFrom asks for what there is room for, gives back the room that was not used, and
// Room says how much there is.
func TestWriteFrom(t *testing.T) {
	p := newPair(t, Config{}, Config{})
	serve(t, p.server, func(st *Stream) {
		if st.Accept() == nil {
			<-st.Context().Done() // nobody reads
		}
	})
	st := open(t, p.client)
	st.SetWriteDeadline(time.Now().Add(20 * time.Second))
	asked := 0
	for range 1000 { // without what is given back, the window would soon be used up
		n, err := st.WriteFrom(maxTurn, func(most int) []byte {
			asked = max(asked, most)
			return make([]byte, 1)
		})
		if n != 1 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if asked < maxFrame {
		t.Errorf("asked for %d bytes at most", asked)
	}
	if n, err := st.WriteFrom(1, func(int) []byte { return nil }); n != 0 || err != nil {
		t.Errorf("nothing: %d bytes, %v", n, err)
	}
	if room := st.Room(); room <= 0 || room > initialWindow-1000 {
		t.Errorf("room for %d bytes", room)
	}
	fill(t, st, p.server)
	if room := st.Room(); room != 0 {
		t.Errorf("room for %d bytes in a full window", room)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := st.WriteFrom(1, func(int) []byte {
			t.Error("asked for bytes that there is no room for")
			return nil
		})
		waiting <- err
	}()
	st.Reset(Cancelled, "enough")
	if err := <-waiting; CodeOf(err) != Cancelled {
		t.Errorf("reset: %v", err)
	}
	if room := st.Room(); room != math.MaxInt32 {
		t.Errorf("room for %d bytes after the reset", room)
	}
}
