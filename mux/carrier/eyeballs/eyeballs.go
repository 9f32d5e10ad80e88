package eyeballs

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// Delay is how long an attempt is alone before the next address is tried as well
	// (RFC 8305, 5 and 8: the Connection Attempt Delay).
	Delay = 250 * time.Millisecond
	// memory is how long the address that worked comes first.
	memory = 10 * time.Minute
	// maxHosts bounds the hosts that are remembered.
	maxHosts = 1024
)

// Order returns addrs, each once, in the order in which to try them: the families take
// turns, beginning with that of the first address (RFC 8305, 4), but first, if it is one of
// them, comes first. It changes nothing in addrs.
func Order(addrs []netip.Addr, first netip.Addr) []netip.Addr {
	var families [2][]netip.Addr // that of the first address, the other
	seen := make(map[netip.Addr]bool)
	for _, addr := range addrs {
		addr = addr.Unmap()
		if seen[addr] {
			continue
		}
		seen[addr] = true
		family := 0
		if addr.Is4() != addrs[0].Unmap().Is4() {
			family = 1
		}
		families[family] = append(families[family], addr)
	}
	var order []netip.Addr
	if first = first.Unmap(); seen[first] {
		order = append(order, first)
	}
	for i := range max(len(families[0]), len(families[1])) {
		for _, family := range families {
			if i < len(family) && family[i] != first {
				order = append(order, family[i])
			}
		}
	}
	return order
}

// Race makes n attempts to connect, which dial makes by their number, from 0: each next one
// after Delay, or as soon as one has failed. It returns the first connection and the number
// of its attempt, after the other attempts have ended; their contexts are cancelled. When
// all have failed, or ctx has ended, it returns the errors of those that were made, at least
// one, by number. dial may be called by several goroutines at once, and must return soon
// after its context has ended.
func Race(ctx context.Context, n int, dial func(ctx context.Context, i int) (net.Conn, error)) (conn net.Conn, winner int, errs []error) {
	if n == 1 { // mostly there is no race, and nothing to be spent on one
		conn, err := dial(ctx, 0)
		if err != nil {
			return nil, 0, []error{err}
		}
		return conn, 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		i    int
		conn net.Conn
		err  error
	}
	results := make(chan result, n)
	next := time.NewTimer(0)
	defer next.Stop()
	for begun, ended := 0, 0; ended < n; {
		var due <-chan time.Time
		if begun < n {
			due = next.C
		}
		select {
		case <-due:
			i := begun
			begun++
			errs = append(errs, nil)
			go func() {
				conn, err := dial(ctx, i)
				results <- result{i, conn, err}
			}()
			next.Reset(Delay)
			continue
		case r := <-results:
			ended++
			switch {
			case r.err != nil:
				errs[r.i] = r.err
				next.Reset(0)
			case conn == nil:
				conn, winner = r.conn, r.i
				cancel()
			default: // too late
				r.conn.Close()
			}
		}
		if ctx.Err() != nil { // no more attempts: wait for those under way
			n = begun
		}
	}
	if conn != nil {
		return conn, winner, nil
	}
	return nil, 0, errs
}

// Memory knows which address of a host has worked last. The zero value is ready. Its methods
// may be called concurrently, and on nil, which remembers nothing.
type Memory struct {
	mu    sync.Mutex
	hosts map[string]known
}

type known struct {
	addr netip.Addr
	at   time.Time
}

// Last returns the address of host that has worked lately, the zero Addr for none.
func (m *Memory) Last(host string) netip.Addr {
	if m == nil {
		return netip.Addr{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.hosts[host]
	if !ok || time.Since(k.at) > memory {
		return netip.Addr{}
	}
	return k.addr
}

// Worked notes that an address of host has worked.
func (m *Memory) Worked(host string, addr netip.Addr) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hosts == nil {
		m.hosts = make(map[string]known)
	}
	if _, ok := m.hosts[host]; !ok && len(m.hosts) >= maxHosts {
		for host := range m.hosts { // whichever: it costs its user one Delay
			delete(m.hosts, host)
			break
		}
	}
	m.hosts[host] = known{addr, time.Now()}
}
