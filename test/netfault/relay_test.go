package netfault_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/test/netfault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// connect starts a target and a relay to it and returns the relay and both ends of one connection through it.
func connect(t *testing.T, setup func(*netfault.Relay)) (relay *netfault.Relay, near, far *net.TCPConn) {
	t.Helper()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	relay, err = netfault.Listen(target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	if setup != nil {
		setup(relay)
	}
	near, far = dial(t, relay, target)
	return relay, near, far
}

func dial(t *testing.T, relay *netfault.Relay, target net.Listener) (near, far *net.TCPConn) {
	t.Helper()
	before := relay.Open()
	a, err := net.Dial("tcp", relay.Addr())
	if err != nil {
		t.Fatal(err)
	}
	b, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); relay.Open() == before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the relay does not know the connection")
		}
	}
	for _, conn := range []net.Conn{a, b} {
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func mustWrite(t *testing.T, conn net.Conn, p []byte) {
	t.Helper()
	if _, err := conn.Write(p); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, conn net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %.32q, want %.32q", got, want)
	}
}

func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want a reset", err)
	}
}

func TestPassesBothWaysAndHalfCloses(t *testing.T) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		_, near, far := connect(t, func(r *netfault.Relay) { r.Delay(delay) })
		started := time.Now()
		mustWrite(t, near, []byte("question"))
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		mustRead(t, far, []byte("question"))
		if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after the half-close: %d, %v", n, err)
		}
		mustWrite(t, far, []byte("answer"))
		mustRead(t, near, []byte("answer"))
		if took := time.Since(started); took < 2*delay {
			t.Errorf("a round trip took %v with %v each way", took, delay)
		}
	}
}

func TestPassesAResetOn(t *testing.T) {
	_, near, far := connect(t, nil)
	if err := near.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	wantReset(t, far)
}

func TestCut(t *testing.T) {
	relay, near, far := connect(t, nil)
	mustWrite(t, near, []byte("x"))
	mustRead(t, far, []byte("x"))
	if n := relay.Cut(); n != 1 {
		t.Fatalf("cut %d connections", n)
	}
	wantReset(t, near)
	wantReset(t, far)
}

func TestCutEvery(t *testing.T) {
	relay, near, far := connect(t, nil)
	stop := relay.CutEvery(time.Millisecond)
	wantReset(t, near)
	wantReset(t, far)
	stop()
	stop()
	if relay.Cuts() != 1 {
		t.Errorf("%d cuts of one connection", relay.Cuts())
	}
}

func TestCutAfter(t *testing.T) {
	relay, near, far := connect(t, func(r *netfault.Relay) { r.CutAfter(netfault.Down, 5) })
	mustWrite(t, near, []byte("more than five"))
	mustRead(t, far, []byte("more than five"))
	mustWrite(t, far, []byte("123"))
	mustRead(t, near, []byte("123"))
	mustWrite(t, far, []byte("45678"))
	wantReset(t, near)
	if got := relay.Bytes(netfault.Down); got != 5 {
		t.Errorf("%d bytes passed before the cut", got)
	}
}

func TestBlackHole(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = target.Close() }()
	relay, err := netfault.Listen(target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = relay.Close() }()

	near, far := dial(t, relay, target)
	relay.BlackHole(true)
	mustWrite(t, near, []byte("lost"))
	_ = near.Close()
	late, lateFar := dial(t, relay, target)
	mustWrite(t, late, []byte("lost as well"))
	relay.BlackHole(false)

	fresh, freshFar := dial(t, relay, target)
	mustWrite(t, fresh, []byte("arrives"))
	mustRead(t, freshFar, []byte("arrives"))
	for _, conn := range []net.Conn{far, lateFar} {
		if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 16)); n != 0 || !isTimeout(err) {
			t.Errorf("behind the black hole: %d bytes, %v", n, err)
		}
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func TestStallIsBackPressure(t *testing.T) {
	relay, near, far := connect(t, nil)
	relay.Stall(true)
	mustWrite(t, near, []byte("later"))
	if err := far.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(make([]byte, 16)); n != 0 || !isTimeout(err) {
		t.Fatalf("while stalled: %d bytes, %v", n, err)
	}
	if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	relay.Stall(false)
	mustRead(t, far, []byte("later"))
}

// Which bits are flipped depends on the seed only, not on how the bytes were cut into reads.
func TestFlipBits(t *testing.T) {
	const size, every, skip = 256 << 10, 4 << 10, 1000
	damaged := func(piece int) []byte {
		relay, near, far := connect(t, func(r *netfault.Relay) { r.FlipBits(netfault.Up, every, skip, 7) })
		go func() {
			for sent := 0; sent < size; sent += piece {
				_, _ = near.Write(make([]byte, min(piece, size-sent)))
			}
			_ = near.CloseWrite()
		}()
		got, err := io.ReadAll(far)
		if err != nil || len(got) != size {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		flipped := 0
		for i, b := range got {
			if b == 0 {
				continue
			}
			flipped++
			if i < skip || b&(b-1) != 0 {
				t.Errorf("byte %d became %#x", i, b)
			}
		}
		if flipped != relay.Flips() || flipped < size/every/3 || flipped > size/every*3 {
			t.Errorf("%d bytes differ, %d bits were flipped", flipped, relay.Flips())
		}
		return got
	}
	if !bytes.Equal(damaged(100_000), damaged(777)) {
		t.Error("one seed, two schedules")
	}
}

func TestLimit(t *testing.T) {
	_, near, far := connect(t, func(r *netfault.Relay) { r.Limit(1 << 20) })
	started := time.Now()
	go func() {
		_, _ = near.Write(make([]byte, 256<<10))
		_ = near.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, far); n != 256<<10 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	// The end may overtake the pause after the last chunk.
	if took := time.Since(started); took < 150*time.Millisecond {
		t.Errorf("256 KiB at 1 MiB/s took %v", took)
	}
}

func TestInject(t *testing.T) {
	relay, _, far := connect(t, nil)
	if n := relay.Inject(netfault.Up, []byte("garbage")); n != 1 {
		t.Fatalf("into %d connections", n)
	}
	mustRead(t, far, []byte("garbage"))
}
