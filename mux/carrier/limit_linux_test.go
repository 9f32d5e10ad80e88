package carrier

import (
	"log/slog"
	"net"
	"testing"

	"culvert/mux/carrier/reserve/reservetest"
)

// signal is told of everything that is written to it.
type signal chan struct{}

func (s signal) Write(p []byte) (int, error) {
	s <- struct{}{}
	return len(p), nil
}

// A server that has as many connections as it may leaves descriptors for files.
func TestAcceptKeepsDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const most = 256
	stalled := make(signal, 1)
	l := newLimitListener(ln, most, most, most, slog.New(slog.NewTextHandler(stalled, nil)))
	reservetest.Limit(t, most)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	defer func() {
		_ = l.Close()
		for range accepted {
		}
		l.closeConns()
	}()
	for full := false; !full; {
		conn, err := net.Dial("tcp", ln.Addr().String()) // which takes a descriptor too
		if err != nil {
			t.Fatalf("there is no reserve: %v", err)
		}
		defer conn.Close()
		select {
		case <-accepted:
		case <-stalled:
			full = true
		}
	}
	reservetest.Kept(t)
}
