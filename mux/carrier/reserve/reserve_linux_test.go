package reserve_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"culvert/mux/carrier/reserve"
	"culvert/mux/carrier/reserve/reservetest"
)

// However many connections there are, files can be opened.
func TestReserve(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const most = 256
	reservetest.Limit(t, most)
	for opened := 0; ; opened++ {
		conn, err := (&net.Dialer{Control: reserve.Control}).DialContext(t.Context(), "tcp", ln.Addr().String())
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if opened > most {
			t.Fatal("there is no reserve")
		}
	}
	reservetest.Kept(t)
	// What is accepted has its descriptor already.
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if err := reserve.Check(accepted); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("with one of the last descriptors: %v", err)
	}
}

func TestNoReserveOfOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if err := reserve.Check(a); err != nil {
		t.Error(err)
	}
}
