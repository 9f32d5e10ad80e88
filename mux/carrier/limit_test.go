package carrier

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/test/bubble"
)

// scripted is a listener whose Accept gives these errors, then conns for ever.
type scripted struct {
	errs   []error
	remote net.Addr
	at     []time.Time // when Accept was called
}

func (l *scripted) Accept() (net.Conn, error) {
	l.at = append(l.at, time.Now())
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, err
	}
	conn, _ := net.Pipe()
	return &remoteConn{Conn: conn, remote: l.remote}, nil
}

func (l *scripted) Close() error   { return nil }
func (l *scripted) Addr() net.Addr { return l.remote }

type remoteConn struct {
	net.Conn
	remote net.Addr
	closed bool
}

func (c *remoteConn) RemoteAddr() net.Addr { return c.remote }

func (c *remoteConn) Close() error {
	c.closed = true
	return c.Conn.Close()
}

func acceptError(errno syscall.Errno) error {
	return &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)}
}

// Accept survives a system that is short of file descriptors or memory: it tries
// again ever more slowly, says so once, and starts afresh after a success.
func TestAcceptBacksOff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		inner := &scripted{remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		for range 5 {
			for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
				inner.errs = append(inner.errs, acceptError(errno))
			}
		}
		n := len(inner.errs)
		l := newLimitListener(inner, 10, 10, 10, slog.New(slog.NewTextHandler(&log, nil)))
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		ceiling := 5 * time.Millisecond
		for i := range n {
			wait := inner.at[i+1].Sub(inner.at[i])
			if wait < ceiling/2 || wait > ceiling {
				t.Errorf("wait %d took %v, want %v at most", i, wait, ceiling)
			}
			ceiling = min(2*ceiling, time.Second)
		}
		if lines := strings.Count(log.String(), "\n"); lines > 3 || !strings.Contains(log.String(), "too many open files") {
			t.Errorf("logged %d lines: %s", lines, log.String())
		}

		inner.errs = []error{acceptError(syscall.EMFILE)}
		start := time.Now()
		if _, err := l.Accept(); err != nil || time.Since(start) > 5*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestAcceptEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		inner := &scripted{errs: []error{acceptError(syscall.EINVAL)}}
		l := newLimitListener(inner, 10, 10, 10, slog.New(slog.DiscardHandler))
		if _, err := l.Accept(); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("an error that will not pass: %v", err)
		}

		// Close ends a wait.
		for range 100 {
			inner.errs = append(inner.errs, acceptError(syscall.EMFILE))
		}
		done := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			done <- err
		}()
		<-time.After(3100 * time.Millisecond)
		start := time.Now()
		_ = l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestLimitsCount(t *testing.T) {
	inner := &scripted{remote: &net.TCPAddr{IP: net.ParseIP("2001:db8:1:2::1")}}
	l := newLimitListener(inner, 4, 3, 10, slog.New(slog.DiscardHandler))
	from := func(ip string) *wire {
		conn, _ := net.Pipe()
		return l.admit(&remoteConn{Conn: conn, remote: &net.TCPAddr{IP: net.ParseIP(ip), Port: 7}})
	}
	isClosed := func(w *wire) bool { return w.Conn.(*remoteConn).closed }

	a, b, c := from("2001:db8:1:2::1"), from("2001:db8:1:2:ffff::"), from("2001:db8:1:2::3")
	if a == nil || b == nil || c == nil {
		t.Fatal("refused within the limits")
	}
	if from("2001:db8:1:2::4") != nil {
		t.Error("a fourth of one /64 network was admitted")
	}
	if w := from("2001:db8:1:3::1"); w == nil {
		t.Error("another network was refused")
	}
	// One that was closed, however often, makes room for one.
	b.Close()
	b.Close()
	b.counted.ends()
	if from("2001:db8:1:2::5") == nil || from("2001:db8:1:2::6") != nil {
		t.Error("closing makes room for one")
	}
	// IPv4 counts by address, in either spelling.
	if from("192.0.2.1") == nil || !isClosed(a) {
		t.Error("the one that waited longest is to be closed when all is full")
	}
	c.counted.claim("alice")
	if from("::ffff:192.0.2.1") == nil || from("192.0.2.1") == nil || from("192.0.2.1") != nil {
		t.Error("an IPv4 address is not one address")
	}
	if isClosed(c) {
		t.Error("a carrier was closed to make room")
	}
	l.closeConns()
	c.Close()
	if n := l.conns.Len(); n != 0 || len(l.byAddr) != 0 || len(l.byIdentity) != 0 {
		t.Errorf("%d connections, %d addresses and %d identities are still counted", n, len(l.byAddr), len(l.byIdentity))
	}
}

// A connection that is busy for a client counts for its identity alone, and one that is
// idle after that makes room for others, until a request comes of which nobody knows whose
// it is.
func TestLimitsOfAnIdentity(t *testing.T) {
	l := newLimitListener(new(scripted), 3, 2, 4, slog.New(slog.DiscardHandler))
	connect := func() *wire {
		conn, _ := net.Pipe()
		return l.admit(&remoteConn{Conn: conn, remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7}})
	}
	isClosed := func(w *wire) bool { return w.Conn.(*remoteConn).closed }
	var busy []*wire
	for range 4 {
		w := connect()
		if w == nil || !w.counted.claim("alice") {
			t.Fatal("refused within the limits")
		}
		busy = append(busy, w)
	}
	fifth := connect()
	if fifth.counted.claim("alice") || !fifth.counted.claim("bob") || !busy[0].counted.claim("alice") {
		t.Error("not the identity's own limit")
	}
	strangers := []*wire{connect(), connect()}
	if connect() != nil {
		t.Error("a third stranger of one address was admitted")
	}
	busy[0].counted.rests()
	if isClosed(busy[0]) {
		t.Error("an idle connection was closed with room for it")
	}
	if fifth.counted.claim("alice") {
		t.Error("idle connections do not count for the identity")
	}
	busy[1].counted.rests()
	if !isClosed(strangers[0]) || isClosed(strangers[1]) || isClosed(busy[0]) {
		t.Error("the oldest of too many is not closed")
	}
	connect()
	connect()
	if !isClosed(strangers[1]) || !isClosed(busy[0]) || isClosed(busy[1]) {
		t.Error("strangers do not take the place of idle connections")
	}
	if !fifth.counted.claim("alice") {
		t.Error("a connection that was closed counts")
	}
	l.closeConns()
	busy[2].counted.begins() // nobody knows whose
	if alices, ofAddr := l.byIdentity["alice"], l.byAddr[busy[2].counted.from.address]; alices != 2 || ofAddr != 1 {
		t.Errorf("%d of alice, %d of the address", alices, ofAddr)
	}
	fifth.Close()
	for _, w := range busy {
		w.Close()
		w.counted.begins() // too late
		w.counted.rests()
		w.counted.claim("alice")
	}
	if n := l.conns.Len(); n != 0 || len(l.byAddr) != 0 || len(l.byIdentity) != 0 {
		t.Errorf("%d connections, %d addresses and %d identities are still counted", n, len(l.byAddr), len(l.byIdentity))
	}
}

// The networks of a site count together.
func TestLimitsCountSites(t *testing.T) {
	l := newLimitListener(&scripted{remote: &net.TCPAddr{}}, 100, 2, 100, slog.New(slog.DiscardHandler))
	from := func(ip string) *wire {
		conn, _ := net.Pipe()
		return l.admit(&remoteConn{Conn: conn, remote: &net.TCPAddr{IP: net.ParseIP(ip), Port: 7}})
	}
	var last *wire
	for i := range 2 * siteAddresses {
		if last = from(fmt.Sprintf("2001:db8:1:%x::1", i)); last == nil {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if from("2001:db8:1:ffff::1") != nil {
		t.Error("one more of the site was admitted")
	}
	if from("2001:db8:2::1") == nil {
		t.Error("another site was refused")
	}
	last.counted.claim("alice") // upgraded
	if from("2001:db8:1:ffff::1") == nil || from("2001:db8:1:fffe::1") != nil {
		t.Error("a carrier makes room for one")
	}
	l.exempt = func(netip.Addr) bool { return true }
	if from("2001:db8:1:ffff::1") == nil {
		t.Error("a trusted proxy is bounded")
	}
	l.closeConns()
	last.Close()
	if len(l.byAddr) != 0 {
		t.Errorf("%d sources are still counted", len(l.byAddr))
	}
}

func TestSeldom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var s seldom
		var counts []int
		for range 250 {
			if n, ok := s.now(); ok {
				counts = append(counts, n)
			}
			<-time.After(100 * time.Millisecond)
		}
		if len(counts) != 3 || counts[0] != 1 || counts[1] != 100 || counts[2] != 100 {
			t.Errorf("passed with counts %v", counts)
		}
	})
}
