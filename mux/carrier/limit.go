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
	total, perAddr int                   // perAddr for each source
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
	from := sourcesOf(conn.RemoteAddr())
	w := newWire(conn)

	l.mu.Lock()
	if limit := l.reached(from); limit != "" && (l.exempt == nil || !l.exempt(addrOf(conn.RemoteAddr()))) {
		l.mu.Unlock()
		l.bites(limit, conn)
		conn.Close()
		return nil
	}
	var oldest *wire
	if l.conns.Len() >= l.total {
		oldest = l.conns.Front().Value.(*wire)
	}
	place := l.count(w, from)
	closed := false
	w.uncount = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		closed = true
		place = l.uncount(place, from)
	}
	w.trust = func(trusted bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case trusted:
			place = l.uncount(place, from)
		case place == nil && !closed:
			place = l.count(w, from)
		}
	}
	l.mu.Unlock()

	if oldest != nil {
		l.bites("unauthenticated", oldest)
		oldest.Close()
	}
	return w
}

// reached returns the limit of a source that has no room for another connection, "" if
// there is room. Called with mu held.
func (l *limitListener) reached(from sources) string {
	switch {
	case l.byAddr[from.address] >= l.perAddr:
		return "unauthenticated_per_address"
	case from.site.IsValid() && l.byAddr[from.site] >= siteAddresses*l.perAddr:
		return "unauthenticated_per_network"
	}
	return ""
}

// count and uncount are called with mu held. place is nil for a connection that is
// not counted.
func (l *limitListener) count(w *wire, from sources) (place *list.Element) {
	l.byAddr[from.address]++
	if from.site.IsValid() {
		l.byAddr[from.site]++
	}
	return l.conns.PushBack(w)
}

func (l *limitListener) uncount(place *list.Element, from sources) *list.Element {
	if place == nil {
		return nil
	}
	l.conns.Remove(place)
	l.forget(from.address)
	if from.site.IsValid() {
		l.forget(from.site)
	}
	return nil
}

func (l *limitListener) forget(source netip.Prefix) {
	if l.byAddr[source]--; l.byAddr[source] == 0 {
		delete(l.byAddr, source)
	}
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

// siteAddresses is how many times the limit of an address a /48 network of IPv6 may
// have: that is what a site gets, with 65,536 networks that count as one address each.
const siteAddresses = 4

// sources are what a connection counts for.
type sources struct {
	address netip.Prefix // an IPv4 address, or an IPv6 /64 network, which one machine mostly has
	site    netip.Prefix // an IPv6 /48 network; not valid for IPv4
}

// sourcesOf returns the sources of an address, none if it is no address.
func sourcesOf(addr net.Addr) (s sources) {
	ip := addrOf(addr)
	switch {
	case ip.Is4():
		s.address = netip.PrefixFrom(ip, 32)
	case ip.Is6():
		s.address, _ = ip.Prefix(64)
		s.site, _ = ip.Prefix(48)
	}
	return s
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
