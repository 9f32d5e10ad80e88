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

	"culvert/mux/carrier/reserve"
)

// limitListener bounds the connections that it accepts. Each is counted among those that
// nobody knows, of its address and in all, or among those of an identity; see counted.
type limitListener struct {
	net.Listener
	total, perAddr, perIdentity int
	exempt                      func(netip.Addr) bool // from perAddr; nil: none
	log                         *slog.Logger
	limits, stalls              seldom

	closeOnce sync.Once
	closed    chan struct{}

	mu         sync.Mutex // guards the rest
	conns      *list.List // of *wire, the oldest first: those that are closed when there are too many
	byAddr     map[netip.Prefix]int
	byIdentity map[string]int
}

func newLimitListener(ln net.Listener, total, perAddr, perIdentity int, log *slog.Logger) *limitListener {
	return &limitListener{
		Listener:    ln,
		total:       total,
		perAddr:     perAddr,
		perIdentity: perIdentity,
		log:         log,
		closed:      make(chan struct{}),
		conns:       list.New(),
		byAddr:      make(map[netip.Prefix]int),
		byIdentity:  make(map[string]int),
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
			if err = reserve.Check(conn); err != nil {
				conn.Close()
			}
		}
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
	w := newWire(conn)
	w.counted = &counted{l: l, wire: w, from: sourcesOf(conn.RemoteAddr())}
	l.mu.Lock()
	if limit := l.reached(w.counted.from); limit != "" && (l.exempt == nil || !l.exempt(addrOf(conn.RemoteAddr()))) {
		l.mu.Unlock()
		l.bites(limit, conn)
		conn.Close()
		return nil
	}
	l.mu.Unlock()
	w.counted.begins()
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

// counted is where a connection counts:
//
//	                     in conns   of its address   of an identity
//	nobody knows it      yes        yes              no
//	busy for a client    no         no               yes
//	idle after that      yes        no               yes
//
// One that is busy is a carrier or has a request of an HTTP pipe. One that is idle is the
// client's until its next request, but makes room for others, as it can be replaced. A nil
// counted is not bounded. Its fields are guarded by the listener's mu.
type counted struct {
	l    *limitListener
	wire *wire
	from sources

	place    *list.Element // in conns; nil: not there
	ofAddr   bool
	known    bool
	identity string // if it is known
	closed   bool
}

// begins is told that the connection, or a request on it, begins, of which nobody knows
// whose it is.
func (c *counted) begins() {
	if c == nil {
		return
	}
	c.l.mu.Lock()
	if !c.closed {
		c.forget()
		if !c.ofAddr {
			c.ofAddr = true
			for _, source := range c.from.all() {
				c.l.byAddr[source]++
			}
		}
		c.wait()
	}
	c.l.mu.Unlock()
	c.l.evict()
}

// claim is told that the connection is busy for a client of this identity. It reports
// false, and changes nothing, if the identity has too many.
func (c *counted) claim(identity string) bool {
	if c == nil {
		return true
	}
	c.l.mu.Lock()
	ok := c.closed || c.l.byIdentity[identity] < c.l.perIdentity || c.known && c.identity == identity
	if ok && !c.closed {
		c.leave()
		c.known, c.identity = true, identity
		c.l.byIdentity[identity]++
	}
	c.l.mu.Unlock()
	if !ok {
		if n, log := c.l.limits.now(); log {
			c.l.log.Warn("limit reached", "limit", "connections", "client", identity, "remote", c.wire.RemoteAddr().String(), "times", n)
		}
	}
	return ok
}

// rests is told that the connection's request has ended.
func (c *counted) rests() {
	if c == nil {
		return
	}
	c.l.mu.Lock()
	if !c.closed {
		c.wait()
	}
	c.l.mu.Unlock()
	c.l.evict()
}

// ends is told that the connection is closed. Idempotent.
func (c *counted) ends() {
	if c == nil {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.closed = true
	c.leave()
}

// wait puts the connection in conns, if it is not there. It and the following are called
// with mu held.
func (c *counted) wait() {
	if c.place == nil {
		c.place = c.l.conns.PushBack(c.wire)
	}
}

// leave takes the connection out of all counts.
func (c *counted) leave() {
	c.forget()
	if c.place != nil {
		c.l.conns.Remove(c.place)
		c.place = nil
	}
	if c.ofAddr {
		c.ofAddr = false
		for _, source := range c.from.all() {
			decrement(c.l.byAddr, source)
		}
	}
}

// forget takes it out of those of an identity.
func (c *counted) forget() {
	if c.known {
		c.known = false
		decrement(c.l.byIdentity, c.identity)
	}
}

func decrement[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

// evict closes the oldest connections that wait, if there are too many.
func (l *limitListener) evict() {
	for {
		l.mu.Lock()
		if l.conns.Len() <= l.total {
			l.mu.Unlock()
			return
		}
		oldest := l.conns.Front().Value.(*wire)
		known := oldest.counted.known
		oldest.counted.leave()
		l.mu.Unlock()
		if !known { // its client hardly notices
			l.bites("unauthenticated", oldest)
		}
		oldest.Close()
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

// closeConns closes every connection that waits.
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

// all are the sources that there are.
func (s sources) all() []netip.Prefix {
	if s.site.IsValid() {
		return []netip.Prefix{s.address, s.site}
	}
	return []netip.Prefix{s.address}
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
