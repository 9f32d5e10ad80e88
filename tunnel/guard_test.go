package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux"
)

// rules is a guard that knows alice, who has goodToken, and bob, both with one
// policy.
func rules(t testing.TB, dial, listen string) *auth.Guard {
	t.Helper()
	return auth.NewGuard(directory(t, dial, listen, "alice", "bob"))
}

// everything is a guard that allows what is not denied to all.
func everything(t testing.TB) *auth.Guard { return rules(t, "allow *:*", "allow localhost:*") }

// directory is of these identities, with goodToken for alice and one policy.
func directory(t testing.TB, dial, listen string, identities ...string) *auth.Directory {
	t.Helper()
	var policy auth.Policy
	for _, list := range []struct {
		text  string
		rules *[]auth.Rule
	}{{dial, &policy.Dial}, {listen, &policy.Listen}} {
		if list.text == "" {
			continue
		}
		r, err := auth.ParseRule(list.text)
		if err != nil {
			t.Fatal(err)
		}
		*list.rules = []auth.Rule{r}
	}
	var all []auth.Identity
	for _, name := range identities {
		id := auth.Identity{Name: name, Policy: policy}
		if name == "alice" {
			id.Tokens = []auth.Token{{Sum: sha256.Sum256([]byte(goodToken))}}
		}
		all = append(all, id)
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: all})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A client's own guard grants what its user has named, whatever that is, and nothing
// that only a server asks for.
func TestClientGrantsItsForwardsOnly(t *testing.T) {
	ln := listenLoopback(t)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	lookup := names(map[string][]string{"db.example": {"127.0.0.1"}, "other.example": {"127.0.0.1"}})
	number, _ := strconv.Atoi(port)
	guard := auth.NewGuard(granted(
		[]Forward{{Port: 8000, Target: "a.example:1"}, {Bind: "*", Port: 8001, Target: "b.example:1"}, {Bind: "localhost", Target: "c.example:1"}},
		[]Forward{{Target: "db.example:" + port}, {Target: "169.254.169.254:80"}, {Target: "2130706433:" + port}},
	))
	d := &dialer{guard: guard, timeout: 10 * time.Second, lookup: lookup}
	for target, want := range map[string]mux.Code{
		"db.example:" + port: mux.OK, "DB.example.:" + port: mux.Unresolvable, // our resolver knows one spelling
		"127.0.0.1:" + port: mux.OK, "other.example:" + port: mux.OK, // the address that the user has named
		"db.example:1": mux.Denied, "127.0.0.1:1": mux.Denied, "[::1]:" + port: mux.Denied,
		"169.254.169.254:81": mux.Denied, "10.0.0.1:80": mux.Denied,
	} {
		conn, grant, err := d.dial(t.Context(), target)
		if code, _ := verdict(err, mux.Internal); code != want {
			t.Errorf("%s: %v, want %v", target, err, want)
		}
		if conn != nil {
			conn.Close()
			grant.Release()
		}
	}
	// By name alone.
	d.guard = auth.NewGuard(granted(nil, []Forward{{Target: "db.example:" + port}}))
	for _, target := range []string{"127.0.0.1:" + port, "other.example:" + port} {
		if _, _, err := d.dial(t.Context(), target); mux.CodeOf(err) == mux.OK || !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%s: %v, want it denied", target, err)
		}
	}
	metadata := netip.MustParseAddrPort("169.254.169.254:80")
	if _, err := guard.Dial("", auth.TCP, auth.HostOf(metadata.Addr()), metadata); err != nil {
		t.Error(err)
	}
	for bind, want := range map[string]bool{
		"localhost:8000": true, "127.0.0.1:8000": false, "[::]:8001": true, "127.0.0.1:0": false,
		"127.0.0.1:8001": false, "0.0.0.0:8000": false, "127.0.0.1:" + strconv.Itoa(number): false,
	} {
		host, addr, err := bindAddr(t.Context(), bind, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guard.Listen("", auth.TCP, host, addr); (err == nil) != want {
			t.Errorf("listen at %s: %v, want %v", bind, err, want)
		}
	}
}

// What another directory does not grant ends at both ends with a reset, while the
// rest of the session goes on.
func TestServerUse(t *testing.T) {
	kept, keptConns := target(t)
	lost, lostConns := target(t)
	var guard *auth.Guard
	server, at := startServer(t, func(c *ServerConfig) { guard = c.Guard })
	client := startClient(t, at, func(c *ClientConfig) {
		c.Local = []Forward{{Target: kept}}
		c.Remote = []Forward{{Target: kept}}
	})
	other := startClient(t, at, local(lost))
	stays := connect(t, client.listening(t, "local"))
	staysFar := within(t, keptConns, "connection to the target")
	visits := connect(t, client.listening(t, "remote"))
	visitsFar := within(t, keptConns, "connection to the target of the remote forward")
	goes := connect(t, other.listening(t, "local"))
	goesFar := within(t, lostConns, "connection to the other target")
	for _, pair := range [][2]*net.TCPConn{{stays, staysFar}, {visits, visitsFar}, {goes, goesFar}} {
		greet(t, pair[0], pair[1])
	}

	began := time.Now()
	guard.Use(directory(t, "allow "+kept, "", "alice"))
	for name, conn := range map[string]net.Conn{"application": goes, "target": goesFar, "visitor": visits, "target of the remote forward": visitsFar} {
		if _, err := io.ReadAll(conn); !isReset(err) {
			t.Errorf("%s sees %v, want a reset", name, err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	server.find(t, "level=WARN", `msg="forward revoked"`, "client=alice")
	wantReset(t, other.listening(t, "local"))
	greet(t, stays, staysFar)

	// And the identity goes.
	began = time.Now()
	guard.Use(directory(t, "allow *:*", "", "bob"))
	for name, conn := range map[string]net.Conn{"application": stays, "target": staysFar} {
		if _, err := io.ReadAll(conn); !isReset(err) {
			t.Errorf("%s sees %v, want a reset", name, err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	server.find(t, `msg="session expelled"`, "client=alice")
	client.find(t, "401")
}

// The server's own listener is not reached by a rule that names the unspecified
// address, at which systems connect to loopback.
func TestOwnListenerByTheUnspecifiedAddress(t *testing.T) {
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = rules(t, "allow 0.0.0.0:*", "") })
	_, port, _ := net.SplitHostPort(at)
	client := startClient(t, at, local("0.0.0.0:"+port))
	wantReset(t, client.listening(t, "local"))
	client.find(t, "denied by policy")
}

// A listener that is revoked takes with it what came in through it, also after its
// owner gave it up, and no open that was under way gets through.
func TestRevokedListener(t *testing.T) {
	guard := everything(t)
	ls := newTestListeners(t, guard)
	p := newPeer(t, "alice")
	addr, stop := mustListen(t, ls, p, 1, "127.0.0.1:0")
	app := connect(t, addr)
	far := within(t, p.session.opened, "stream")
	far.Accept()
	p.attached.Store(false)
	waits := connect(t, addr) // for a carrier
	stop()
	ls.accepting.Wait()
	guard.Use(directory(t, "allow *:*", "", "alice", "bob"))
	for name, conn := range map[string]net.Conn{"connection": app, "pending connection": waits} {
		if _, err := io.ReadAll(conn); !isReset(err) {
			t.Errorf("%s sees %v, want a reset", name, err)
		}
	}
	within(t, far.Context().Done(), "end of the stream")
	if _, err := ls.listen(t.Context(), p.peer, 2, addr); mux.CodeOf(err) != mux.Denied {
		t.Errorf("listen after that: %v", err)
	}
}

// opening is a session whose opens do something first.
type opening struct {
	session
	first func()
}

func (o opening) Open(ctx context.Context, h mux.Header) (stream, error) {
	o.first()
	return o.session.Open(ctx, h)
}

func TestListenerRevokedDuringAnOpen(t *testing.T) {
	guard := everything(t)
	ls := newTestListeners(t, guard)
	p := newPeer(t, "alice")
	a := newAuditing(t)
	p.account = a.account("id")
	p.peer.session = opening{p.session, func() { guard.Use(directory(t, "allow *:*", "", "alice")) }}
	addr, _ := mustListen(t, ls, p, 1, "127.0.0.1:0")
	wantReset(t, addr)
	within(t, within(t, p.session.opened, "stream").Context().Done(), "end of the stream")
	if e := a.event(t, auditStreamEnded, 0); e["ended"] != endedRevoked {
		t.Errorf("in the audit log: %v", e)
	}
}

// accepting is a stream that does something when it is accepted.
type accepting struct {
	stream
	first func()
}

func (a accepting) Accept() error {
	a.first()
	return a.stream.Accept()
}

func TestRevokedWhileAccepted(t *testing.T) {
	logger, _ := newJournal(t)
	ln := listenLoopback(t)
	guard := everything(t)
	opener, acceptor := newFakeStreams(mux.Header{})
	d := &dialer{guard: guard, identity: "alice", timeout: 10 * time.Second}
	serve(d, accepting{acceptor, func() { guard.Use(directory(t, "", "", "alice")) }}, "id", ln.Addr().String(), newEvents(Settings{Logger: logger}))
	var reset *mux.Error
	if err := context.Cause(opener.Context()); !errors.As(err, &reset) || reset.Code != mux.Denied {
		t.Errorf("the opener is told %v", err)
	}
}
