package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/test/thirdparty"
)

func listenLoopback(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// closedPort is a loopback address at which nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", thirdparty.FreePort(t))
}

func names(hosts map[string][]string) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, host string) (addrs []netip.Addr, err error) {
		list, ok := hosts[host]
		if !ok {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		for _, a := range list {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs, nil
	}
}

func TestDialClassifies(t *testing.T) {
	closed := closedPort(t)
	_, closedPortNumber, _ := net.SplitHostPort(closed)
	open := listenLoopback(t).Addr().String()
	_, openPort, _ := net.SplitHostPort(open)
	lookup := names(map[string][]string{
		"two.test":    {"127.0.0.2", "127.0.0.1"},
		"half.test":   {"255.255.255.255", "127.0.0.1"}, // the first cannot be dialled
		"mapped.test": {"::ffff:127.0.0.1"},
		"none.test":   {},
	})
	only := func(host string) *auth.Guard { return rules(t, "allow "+host+":*", "") }
	for _, tt := range []struct {
		name   string
		dialer dialer
		target string
		code   mux.Code
		reason string
	}{
		{"open", dialer{}, open, mux.OK, ""},
		{"refused", dialer{}, closed, mux.Refused, "connection refused"},
		{"unknown name", dialer{lookup: lookup}, "unknown.test:80", mux.Unresolvable, "no such host"},
		{"name without address", dialer{lookup: lookup}, "none.test:80", mux.Unresolvable, "no address"},
		{"malformed", dialer{}, "no-port", mux.Unresolvable, "malformed target"},
		{"port name", dialer{}, "127.0.0.1:http", mux.Unresolvable, "malformed target"},
		{"port 0", dialer{}, "127.0.0.1:0", mux.Unresolvable, "malformed target"},
		{"port too large", dialer{}, "127.0.0.1:65536", mux.Unresolvable, "malformed target"},
		{"no host", dialer{}, ":80", mux.Unresolvable, "malformed target"},
		{"denied", dialer{guard: only("127.0.0.9")}, open, mux.Denied, "denied by policy"},
		{"denied by name", dialer{guard: only("127.0.0.9"), lookup: lookup}, "two.test:" + openPort, mux.Denied, "denied by policy"},
		{"one of two allowed", dialer{guard: only("127.0.0.1"), lookup: lookup}, "two.test:" + openPort, mux.OK, ""},
		{"second answers", dialer{lookup: lookup}, "two.test:" + openPort, mux.OK, ""},
		{"none answers", dialer{lookup: lookup}, "two.test:" + closedPortNumber, mux.Refused, "connection refused"},
		{"most telling answer", dialer{lookup: lookup}, "half.test:" + closedPortNumber, mux.Refused, "connection refused"},
		{"policy sees IPv4 in IPv6 as IPv4", dialer{guard: only("127.0.0.1"), lookup: lookup}, "mapped.test:" + openPort, mux.OK, ""},
		{"timed out", dialer{timeout: 50 * time.Millisecond}, fullBacklog(t), mux.TimedOut, "connection timed out"},
		{"lookup timed out", dialer{timeout: 20 * time.Millisecond, lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
		}}, "slow.test:80", mux.Unresolvable, "lookup timed out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dialer.guard == nil {
				tt.dialer.guard = everything(t)
			}
			tt.dialer.identity = "alice"
			if tt.dialer.timeout == 0 {
				tt.dialer.timeout = 10 * time.Second
			}
			conn, _, err := tt.dialer.dial(t.Context(), tt.target)
			if conn != nil {
				conn.Close()
			}
			code, why := mux.OK, ""
			if err != nil {
				code, why = verdict(err, 255)
			}
			if code != tt.code || why != tt.reason {
				t.Errorf("got %v %q (%v), want %v %q", code, why, err, tt.code, tt.reason)
			}
		})
	}
}

// What the sockets of one machine cannot be made to say.
func TestClassify(t *testing.T) {
	for err, want := range map[error]mux.Code{
		context.Canceled:                                mux.Cancelled,
		context.DeadlineExceeded:                        mux.TimedOut,
		os.ErrDeadlineExceeded:                          mux.TimedOut,
		&net.OpError{Op: "dial", Err: &net.AddrError{}}: mux.Internal,
		errors.New("anything"):                          mux.Internal,
		&TargetError{Code: mux.Denied}:                  mux.Denied,
	} {
		if got := classify(fmt.Errorf("wrapped: %w", err)); got.Code != want {
			t.Errorf("%v is %v, want %v", err, got.Code, want)
		}
	}
	for errno, want := range errnoCodes {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}
		if got := classify(err); got.Code != want {
			t.Errorf("%v is %v, want %v", err, got.Code, want)
		}
	}
}

// The address that was checked is the address that is dialled: a name that
// answers differently the second time, or more than was allowed, reaches
// nothing else.
func TestDialAsksPolicyForEveryAddress(t *testing.T) {
	ln := listenLoopback(t)
	addr := netip.MustParseAddrPort(ln.Addr().String())
	lookups := 0
	d := dialer{
		guard: rules(t, "allow 127.0.0.1:*", ""), identity: "alice", timeout: 10 * time.Second,
		lookup: func(context.Context, string) ([]netip.Addr, error) {
			lookups++
			return []netip.Addr{netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("127.0.0.1")}, nil
		},
	}
	conn, grant, err := d.dial(t.Context(), fmt.Sprintf("rebinding.test:%d", addr.Port()))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if grant.Addr() != addr {
		t.Errorf("dialled with leave for %s, want %s", grant.Addr(), addr)
	}
	if lookups != 1 {
		t.Errorf("%d lookups", lookups)
	}
}

// A dial ends with its stream.
func TestServeTargetEndsWithStream(t *testing.T) {
	logger, _ := newJournal(t)
	opener, acceptor := newFakeStreams(mux.Header{Kind: mux.KindDial, Target: "slow.test:80"})
	started := make(chan struct{})
	d := &dialer{guard: everything(t), identity: "alice", timeout: time.Hour, lookup: func(ctx context.Context, _ string) ([]netip.Addr, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	done := make(chan struct{})
	go func() {
		serve(d, acceptor, "id", "slow.test:80", newEvents(Settings{Logger: logger}))
		close(done)
	}()
	<-started
	opener.Reset(mux.Cancelled, "user left")
	within(t, done, "dial")
}

func TestServeTarget(t *testing.T) {
	logger, journal := newJournal(t)
	ln := listenLoopback(t)
	opener, acceptor := newFakeStreams(mux.Header{})
	done := make(chan struct{})
	go func() {
		serve(&dialer{guard: everything(t), identity: "alice", timeout: 10 * time.Second}, acceptor, "id", ln.Addr().String(), newEvents(Settings{Logger: logger}))
		close(done)
	}()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := opener.Reply(t.Context()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(opener, "hello")
	opener.CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
		t.Errorf("target read %q, %v", b, err)
	}
	conn.Close()
	within(t, done, "relay")

	opener, acceptor = newFakeStreams(mux.Header{})
	serve(&dialer{guard: everything(t), identity: "alice", timeout: 10 * time.Second}, acceptor, "id", closedPort(t), newEvents(Settings{Logger: logger}))
	if err := opener.Reply(t.Context()); mux.CodeOf(err) != mux.Refused {
		t.Errorf("opener is told %v", err)
	}
	journal.find(t, "level=WARN", `msg="target refused"`, "session=id", "stream=1", "code=refused")
}

// serve serves a target until its relay has ended.
func serve(d *dialer, st stream, session, target string, log events) {
	if relaying := serveTarget(d, st, session, target, log, nil); relaying != nil {
		relaying()
	}
}
