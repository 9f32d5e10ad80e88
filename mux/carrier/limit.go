package carrier

import (
	"container/list"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// limitListener bounds the connections that are not carriers. A connection is
// counted from Accept until it is closed or its wire is told that it was
// upgraded.
type limitListener struct {
	net.Listener
	total, perAddr int
	exempt         func(netip.Addr) bool // from perAddr; nil: none
	log            *slog.Logger
	limits, stalls seldom

	closeOnce sync.Once
	closed    chan struct{}

	mu     sync.Mutex // guards the rest
	conns  *list.List // of *wire, the oldest first
	byAddr map[netip.Prefix]int
}

func newLimitListener(ln net.Listener, total, perAddr int, log *slog.Logger) *limitListener {
	return &limitListener{
		Listener: ln,
		total:    total,
		perAddr:  perAddr,
		log:      log,
		closed:   make(chan struct{}),
		conns:    list.New(),
		byAddr:   make(map[netip.Prefix]int),
	}
}

// Accept returns the next connection that is within the limits, a *wire. It goes
// on when the system is short of something.
func (l *limitListener) Accept() (net.Conn, error) {
	const shortest, longest = 5 * time.Millisecond, time.Second
	wait := shortest
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			wait = shortest
			if w := l.admit(conn); w != nil {
				return w, nil
			}
			continue
		}
		if !passing(err) {
			return nil, err
		}
		delay := wait/2 + rand.N(wait/2)
		if n, ok := l.stalls.now(); ok {
			l.log.Warn("cannot accept connections", "error", err, "retry_in", delay, "times", n)
		}
		timer := time.NewTimer(delay)
		select {
		case <-l.closed:
			timer.Stop()
			return nil, net.ErrClosed
		case <-timer.C:
		}
		wait = min(2*wait, longest)
	}
}

// passing reports whether an error of Accept is the connection's or the
// system's, and not the listener's.
func passing(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit counts conn, or closes it and returns nil.
func (l *limitListener) admit(conn net.Conn) *wire {
	key := addrKey(conn.RemoteAddr())
	w := newWire(conn)

	l.mu.Lock()
	if l.byAddr[key] >= l.perAddr && (l.exempt == nil || !l.exempt(addrOf(conn.RemoteAddr()))) {
		l.mu.Unlock()
		l.bites("unauthenticated_per_address", conn)
		conn.Close()
		return nil
	}
	var oldest *wire
	if l.conns.Len() >= l.total {
		oldest = l.conns.Front().Value.(*wire)
	}
	place := l.count(w, key)
	closed := false
	w.uncount = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		closed = true
		place = l.uncount(place, key)
	}
	w.trust = func(trusted bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case trusted:
			place = l.uncount(place, key)
		case place == nil && !closed:
			place = l.count(w, key)
		}
	}
	l.mu.Unlock()

	if oldest != nil {
		l.bites("unauthenticated", oldest)
		oldest.Close()
	}
	return w
}

// count and uncount are called with mu held. place is nil for a connection that is
// not counted.
func (l *limitListener) count(w *wire, key netip.Prefix) (place *list.Element) {
	l.byAddr[key]++
	return l.conns.PushBack(w)
}

func (l *limitListener) uncount(place *list.Element, key netip.Prefix) *list.Element {
	if place != nil {
		l.conns.Remove(place)
		if l.byAddr[key]--; l.byAddr[key] == 0 {
			delete(l.byAddr, key)
		}
	}
	return nil
}

func (l *limitListener) bites(limit string, conn net.Conn) {
	if n, ok := l.limits.now(); ok {
		l.log.Warn("limit reached", "limit", limit, "remote", conn.RemoteAddr().String(), "times", n)
	}
}

// Close also ends the wait of an Accept that backs off.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// closeConns closes every connection that is counted.
func (l *limitListener) closeConns() {
	l.mu.Lock()
	var all []*wire
	for e := l.conns.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*wire))
	}
	l.mu.Unlock()
	for _, w := range all {
		w.Close()
	}
}

// addrKey is what counts as one address: whoever has one IPv6 address mostly has
// the 64 bits behind it too.
func addrKey(addr net.Addr) netip.Prefix {
	ip := addrOf(addr)
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // none of an address that is none
	return prefix
}

// addrOf is the address of a TCP socket, in its one spelling.
func addrOf(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// seldom lets a log line pass once in 10 s.
type seldom struct {
	mu   sync.Mutex
	last time.Time
	n    int
}

// now reports whether to log, and how many times there was something to log
// since the last line, this time included.
func (s *seldom) now() (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if !s.last.IsZero() && time.Since(s.last) < 10*time.Second {
		return 0, false
	}
	n := s.n
	s.last, s.n = time.Now(), 0
	return n, true
}
