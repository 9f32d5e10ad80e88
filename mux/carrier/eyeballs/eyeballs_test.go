package eyeballs

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/test/bubble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		in    []netip.Addr
		first string
		want  []netip.Addr
	}{
		{nil, "", nil},
		{addrs("10.0.0.1"), "", addrs("10.0.0.1")},
		{addrs("10.0.0.1", "10.0.0.2", "::1", "::2", "::3"), "", addrs("10.0.0.1", "::1", "10.0.0.2", "::2", "::3")},
		{addrs("::1", "::2", "10.0.0.1"), "", addrs("::1", "10.0.0.1", "::2")},
		{addrs("::1", "::2", "10.0.0.1"), "::2", addrs("::2", "::1", "10.0.0.1")},
		{addrs("::1", "10.0.0.1"), "::9", addrs("::1", "10.0.0.1")},
		{addrs("::ffff:10.0.0.1", "10.0.0.1", "::1"), "::ffff:10.0.0.1", addrs("10.0.0.1", "::1")},
	} {
		first, _ := netip.ParseAddr(tt.first)
		if got := Order(tt.in, first); !slices.Equal(got, tt.want) {
			t.Errorf("%v, first %v: %v, want %v", tt.in, tt.first, got, tt.want)
		}
	}
}

// conn is a connection that was opened.
type conn struct {
	net.Conn
	closed atomic.Bool
}

func (c *conn) Close() error { c.closed.Store(true); return nil }

// attempt is how a dial goes.
type attempt struct {
	takes time.Duration // until it ends, even if its context ends before, if deaf
	fails bool
	deaf  bool
}

func TestRace(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		attempts []attempt
		limit    time.Duration // of the context, 0: none
		winner   int           // -1: none
		took     time.Duration
		made     int
	}{
		{"the first answers at once", []attempt{{takes: 10 * ms}, {}}, 0, 0, 10 * ms, 1},
		{"the first is dead", []attempt{{takes: time.Hour}, {takes: 10 * ms}}, 0, 1, Delay + 10*ms, 2},
		{"the first two are dead", []attempt{{takes: time.Hour}, {takes: time.Hour}, {takes: 10 * ms}}, 0, 2, 2*Delay + 10*ms, 3},
		{"the first is refused", []attempt{{takes: ms, fails: true}, {takes: ms}}, 0, 1, 2 * ms, 2},
		{"the first is slow and wins", []attempt{{takes: Delay + 10*ms}, {takes: time.Hour}}, 0, 0, Delay + 10*ms, 2},
		{"all refused", []attempt{{takes: ms, fails: true}, {takes: ms, fails: true}}, 0, -1, 2 * ms, 2},
		{"too late to win", []attempt{{takes: Delay + 10*ms, deaf: true}, {takes: 5 * ms}}, 0, 1, Delay + 10*ms, 2},
		{"no time", []attempt{{takes: time.Hour}, {takes: time.Hour}, {takes: time.Hour}}, 400 * ms, -1, 400 * ms, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.limit)
					defer cancel()
				}
				conns := make([]*conn, len(tt.attempts))
				var made atomic.Int32
				began := time.Now()
				got, winner, errs := Race(ctx, len(tt.attempts), func(ctx context.Context, i int) (net.Conn, error) {
					made.Add(1)
					a := tt.attempts[i]
					if a.deaf {
						time.Sleep(a.takes)
					} else {
						select {
						case <-time.After(a.takes):
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					}
					if a.fails {
						return nil, fmt.Errorf("refused %d", i)
					}
					conns[i] = new(conn)
					return conns[i], nil
				})
				if took := time.Since(began); took != tt.took || int(made.Load()) != tt.made {
					t.Errorf("%v and %d attempts, want %v and %d", took, made.Load(), tt.took, tt.made)
				}
				if tt.winner < 0 {
					if got != nil || len(errs) != tt.made || slices.Contains(errs, nil) {
						t.Errorf("%v, errors %v", got, errs)
					}
					return
				}
				if winner != tt.winner || got != conns[winner] || errs != nil {
					t.Errorf("winner %d (%v), errors %v, want %d", winner, got, errs, tt.winner)
				}
				for i, c := range conns {
					if c != nil && c.closed.Load() != (i != winner) {
						t.Errorf("connection %d closed: %t", i, c.closed.Load())
					}
				}
			})
		})
	}
}

// An address that was remembered is forgotten with time, and hosts are bounded.
func TestMemory(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var m Memory
		addr := netip.MustParseAddr("::1")
		if m.Last("a").IsValid() || (*Memory)(nil).Last("a").IsValid() {
			t.Error("something is known of a new host")
		}
		(*Memory)(nil).Worked("a", addr)
		m.Worked("a", addr)
		time.Sleep(memory)
		if m.Last("a") != addr {
			t.Error("forgotten too early")
		}
		time.Sleep(time.Nanosecond)
		if m.Last("a").IsValid() {
			t.Error("never forgotten")
		}
		for i := range 3 * maxHosts {
			m.Worked(fmt.Sprint(i), addr)
		}
		if len(m.hosts) > maxHosts {
			t.Errorf("%d hosts", len(m.hosts))
		}
	})
}
