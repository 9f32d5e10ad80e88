package tunnel

import (
	"syscall"
	"testing"

	"culvert/mux"
)

// A peer on this machine that does not read makes the system hold little.
func TestRelaySendBuffer(t *testing.T) {
	app, ours := tcpPair(t)
	st, far := newFakeStreams(mux.Header{})
	_, done := startRelay(ours, st)
	go far.Write([]byte("x"))
	if _, err := app.Read(make([]byte, 1)); err != nil { // the relay runs
		t.Fatal(err)
	}
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
		if err != nil || n != 2*localSendBuffer {
			t.Errorf("send buffer of %d bytes, %v; want %d", n, err, 2*localSendBuffer)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	app.Close()
	far.CloseWrite()
	within(t, done, "relay")
}
