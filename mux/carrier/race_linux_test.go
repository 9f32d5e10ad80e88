package carrier_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/mux/carrier"
)

// An IPv6 address that does not answer costs a quarter of a second, not a time-out.
func TestDialRacesFamilies(t *testing.T) {
	silent := silentIPv6(t)
	ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", silent.Port()))
	for tries := 0; err != nil && tries < 20; tries++ { // the port was taken
		silent = silentIPv6(t)
		ln, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", silent.Port()))
	}
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(culvert)}}
	srv.Start()
	defer srv.Close()
	dialer := carrier.NewNetDialer()
	dialer.Resolver = &net.Resolver{PreferGo: true, Dial: nameServer(silent.Addr(), netip.MustParseAddr("127.0.0.1"))}
	d := &carrier.Dialer{URL: parseURL(t, fmt.Sprintf("ws://both.example:%d", silent.Port())), NetDial: dialer.DialContext}
	began := time.Now()
	if err := dialed(t, d); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < carrier.FallbackDelay || took > 10*carrier.FallbackDelay {
		t.Errorf("it took %v, the delay is %v", took, carrier.FallbackDelay)
	}
}

// silentIPv6 is an address of this machine that answers no connection.
func silentIPv6(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	loopback := netip.IPv6Loopback()
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: loopback.As16()}); err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(loopback, uint16(sa.(*unix.SockaddrInet6).Port))
	conn, err := net.Dial("tcp", addr.String()) // the one that fits
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return addr
}

// nameServer is a net.Resolver's Dial to a name server that knows the same two
// addresses for every name (RFC 1035, over TCP).
func nameServer(six, four netip.Addr) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			for {
				length := make([]byte, 2)
				if _, err := io.ReadFull(far, length); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length))
				if _, err := io.ReadFull(far, query); err != nil {
					return
				}
				answer := answerTo(query, six, four)
				if _, err := far.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
					return
				}
			}
		}()
		return near, nil
	}
}

func answerTo(query []byte, six, four netip.Addr) []byte {
	end := 12 // of the header; the question's name follows
	for query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 5 // root, type and class
	address := four.AsSlice()
	if binary.BigEndian.Uint16(query[end-4:]) == 28 { // AAAA
		address = six.AsSlice()
	}
	answer := append(query[:2:2], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0) // no error, one question, one answer
	answer = append(answer, query[12:end]...)
	answer = append(answer, 0xc0, 12)              // the question's name
	answer = append(answer, query[end-4:end]...)   // its type and class
	answer = append(answer, 0, 0, 0, 60)           // seconds to live
	answer = append(answer, 0, byte(len(address))) // length of
	return append(answer, address...)
}
