package tunnel

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/link"
	"culvert/test/bubble"
	"culvert/tunnel/audit"
)

// auditing is an audit log that a test can wait on.
type auditing struct {
	*audit.Log
	*journal
}

func newAuditing(t testing.TB) auditing {
	_, j := newJournal(t)
	return auditing{audit.New(j, func(err error, _ int) { t.Error(err) }), j}
}

// account is that of alice's session of this name.
func (a auditing) account(session string) *account {
	return &account{log: a.Log, identity: "alice", session: session, origin: func() origin { return origin{} }}
}

// served is a stream of alice's that has begun to be served, and its far end.
func (a auditing) served(t testing.TB, h mux.Header) (near *metered, far *fakeStream) {
	t.Helper()
	u := testUsages(t, auth.Limits{}).join("alice")
	if err := u.enter(); err != nil {
		t.Fatal(err)
	}
	st, far := newFakeStreams(h)
	e := a.account("s").stream(st.ID(), h)
	near = u.meter(st, e)
	e.serve()
	return near, far
}

// event waits for the nth event of a kind, from 0, and returns it.
func (a auditing) event(t testing.TB, event string, n int) map[string]any {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		if all := a.events(t, event); len(all) > n {
			return all[n]
		}
		select {
		case <-a.lines:
		case <-timeout:
			t.Fatalf("no %s in:\n%s", event, a)
		}
	}
}

// events are those of one kind so far.
func (a auditing) events(t testing.TB, event string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(a.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(e["time"])); err != nil {
			t.Error(err)
		}
		if e["event"] == event {
			all = append(all, e)
		}
	}
	return all
}

// wantEvent checks that an event has these values, and no other keys than those and
// the ones of which only the presence is checked.
func wantEvent(t testing.TB, got map[string]any, values map[string]any, present ...string) {
	t.Helper()
	keys := append(slices.Collect(maps.Keys(values)), append(present, "time", "event")...)
	slices.Sort(keys)
	if has := slices.Sorted(maps.Keys(got)); !slices.Equal(has, keys) {
		t.Errorf("%s has the keys %v, want %v", got["event"], has, keys)
	}
	for key, value := range values {
		if fmt.Sprint(got[key]) != fmt.Sprint(value) {
			t.Errorf("%s: %s is %v, want %v", got["event"], key, got[key], value)
		}
	}
}

// policy is a directory of alice, who has goodToken with a label.
func policy(t testing.TB, rules ...string) *auth.Directory {
	t.Helper()
	alice := auth.Identity{Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(goodToken)), Label: "laptop"}}}
	for _, text := range rules {
		list := &alice.Policy.Dial
		text, listen := strings.CutPrefix(text, "listen ")
		if listen {
			list = &alice.Policy.Listen
		}
		r, err := auth.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		*list = append(*list, r)
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{alice}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// forwardTo is the address of the agent's local forward to a target.
func (a *agent) forwardTo(t testing.TB, target string) string {
	t.Helper()
	line := a.find(t, `msg="forward listening"`, `forward="local`, ":"+target+`" `)
	_, rest, _ := strings.Cut(line, " address=")
	return strings.TrimSpace(rest)
}

func TestAuditLog(t *testing.T) {
	a := newAuditing(t)
	to, conns := target(t)
	denied, _ := target(t)
	gone := listenLoopback(t)
	gone.Close()
	_, port, _ := strings.Cut(to, ":")
	_, gonePort, _ := strings.Cut(gone.Addr().String(), ":")
	rule := "allow 127.0.0.1:" + port
	guard := auth.NewGuard(policy(t, rule, "allow localhost:"+gonePort, "listen allow localhost:*"))
	server, addr := startServer(t, func(c *ServerConfig) { c.Guard, c.Audit = guard, a.Log })

	// A stranger.
	if err := refusedWith(t, addr, func(c *ClientConfig) {
		c.Credential = func() (string, error) { return "wrong-" + goodToken, nil }
	}); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Errorf("a stranger is told %v", err)
	}
	wantEvent(t, a.event(t, auditLoginRefused, 0), map[string]any{"error": "unknown token", "credential": "token"}, "remote")

	client := startClient(t, addr, func(c *ClientConfig) {
		local("localhost:" + port)(c)
		local(denied)(c)
		local(gone.Addr().String())(c)
		remote(to)(c)
	})
	login := a.event(t, auditLogin, 0)
	wantEvent(t, login, map[string]any{"identity": "alice", "credential": "token laptop"}, "remote")
	opened := a.event(t, auditSessionOpened, 0)
	wantEvent(t, opened, map[string]any{"identity": "alice", "credential": "token laptop", "remote": login["remote"]}, "session")
	base := map[string]any{"identity": "alice", "credential": "token laptop", "remote": login["remote"], "session": opened["session"]}
	with := func(more map[string]any) map[string]any {
		all := maps.Clone(base)
		maps.Copy(all, more)
		return all
	}

	// A stream that is allowed, and its bytes.
	app := connect(t, client.forwardTo(t, "localhost:"+port))
	far := within(t, conns, "connection to the target")
	defer far.Close()
	io.WriteString(app, "question")
	app.CloseWrite()
	io.ReadAll(far)
	io.WriteString(far, "the answer")
	far.Close()
	io.ReadAll(app)
	stream := map[string]any{"kind": "local", "target": "localhost:" + port, "address": to, "rule": rule}
	wantEvent(t, a.event(t, auditStreamOpened, 0), with(stream), "stream")
	maps.Copy(stream, map[string]any{"bytes_sent": 10, "bytes_received": 8, "ended": "closed"})
	wantEvent(t, a.event(t, auditStreamEnded, 0), with(stream), "stream", "duration")

	// One that is denied, and one whose target is not there.
	wantReset(t, client.forwardTo(t, denied))
	wantEvent(t, a.event(t, auditStreamDenied, 0), with(map[string]any{"kind": "local", "target": denied, "address": denied,
		"rule": "no rule allows it"}), "stream", "error")
	wantReset(t, client.forwardTo(t, gone.Addr().String()))
	wantEvent(t, a.event(t, auditStreamFailed, 0), with(map[string]any{"kind": "local", "target": gone.Addr().String()}), "stream", "error")

	// A remote forward.
	listener := client.listening(t, "remote")
	wantEvent(t, a.event(t, auditListenOpened, 0), with(map[string]any{"target": "localhost:0", "listener": listener, "rule": "allow localhost:*"}))
	outsider := connect(t, listener)
	far = within(t, conns, "connection to the target")
	defer far.Close()
	greet(t, outsider, far)
	stream = map[string]any{"kind": "remote", "listener": listener, "from": outsider.LocalAddr().String(), "rule": "allow localhost:*"}
	wantEvent(t, a.event(t, auditStreamOpened, 1), with(stream), "stream")

	// The policy changes: what it does not allow any more is revoked.
	app = connect(t, client.forwardTo(t, "localhost:"+port))
	greet(t, app, within(t, conns, "connection to the target"))
	guard.Use(policy(t))
	wantEvent(t, a.event(t, auditReload, 0), nil)
	wantEvent(t, a.event(t, auditListenEnded, 0), with(map[string]any{"listener": listener, "ended": "revoked"}), "duration")
	var revoked map[string]any
	for n := 1; revoked == nil; n++ {
		if e := a.event(t, auditStreamEnded, n); e["kind"] == "local" {
			revoked = e
		}
	}
	wantEvent(t, revoked, with(map[string]any{"kind": "local", "target": "localhost:" + port, "address": to, "rule": rule,
		"bytes_sent": 1, "bytes_received": 1, "ended": "revoked"}), "stream", "duration", "error")

	client.stop()
	client.ended(t)
	wantEvent(t, a.event(t, auditSessionEnded, 0), with(nil), "duration", "reason")
	server.stop()
	server.ended(t)
	if text := a.String(); strings.Contains(text, goodToken) {
		t.Error("a secret in the log")
	}

	// Everything that was written is explained.
	page, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(a.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		for _, name := range append(slices.Collect(maps.Keys(e)), e["event"].(string)) {
			if !strings.Contains(string(page), "\n| `"+name+"` |") && name != "event" {
				t.Errorf("docs/audit.md does not explain %s", name)
			}
		}
	}
}

// A listener that another session takes over is the one's no more and the other's.
func TestAuditOfTakeOver(t *testing.T) {
	a := newAuditing(t)
	ls := newTestListeners(t, everything(t))
	peers := [2]*testPeer{newPeer(t, "alice"), newPeer(t, "alice")}
	for i, session := range []string{"first", "second"} {
		peers[i].account = a.account(session)
	}
	addr, _ := mustListen(t, ls, peers[0], 1, "127.0.0.1:0")
	peers[0].attached.Store(false)
	mustListen(t, ls, peers[1], 1, addr)
	who := func(session string, more map[string]any) map[string]any {
		maps.Copy(more, map[string]any{"identity": "alice", "session": session, "listener": addr})
		return more
	}
	wantEvent(t, a.event(t, auditListenEnded, 0), who("first", map[string]any{"ended": "taken_over"}), "duration")
	wantEvent(t, a.event(t, auditListenOpened, 1), who("second", map[string]any{"rule": "allow localhost:*", "target": addr}))
	ls.release(peers[0].peer)
	ls.release(peers[1].peer)
	wantEvent(t, a.event(t, auditListenEnded, 1), who("second", map[string]any{"ended": "closed"}), "duration")

	// What the policy allows and the system does not.
	taken := listenLoopback(t)
	peers[1].gone = false
	if _, err := ls.listen(t.Context(), peers[1].peer, 2, taken.Addr().String()); err == nil {
		t.Error("an address twice")
	}
	wantEvent(t, a.event(t, auditListenFailed, 0), map[string]any{"identity": "alice", "session": "second", "target": taken.Addr().String()}, "error")
}

// Streams over a limit may be very many, and few lines are written of them.
func TestAuditOfManyRefusals(t *testing.T) {
	a := newAuditing(t)
	us := testUsages(t, auth.Limits{})
	us.floods.audit = a.Log
	u := us.join("alice")
	who := a.account("s")
	u.limit(auth.Limits{OpensPerSecond: 1})
	u.enter()
	for range 1000 {
		if u.enterTold(who.stream(1, mux.Header{Target: "x:1"})) == nil {
			u.exit()
		}
	}
	us.floods.flush()
	if n := len(a.events(t, auditStreamDenied)); n > 200 {
		t.Errorf("%d lines of 1,000 refusals", n)
	}
}

// What a client says of itself is bounded.
func TestAuditOfLongNames(t *testing.T) {
	a := newAuditing(t)
	who := a.account("s")
	who.stream(1, mux.Header{Target: strings.Repeat("x", 10_000)}).refuse(errNoSession)
	if e := a.event(t, auditStreamFailed, 0); len(e["target"].(string)) > maxAudited+3 {
		t.Errorf("a target of %d bytes", len(e["target"].(string)))
	}
}

// pausedWriter takes one write and says so, and ends it when it is let.
type pausedWriter struct {
	took, end chan struct{}
}

func (w pausedWriter) TryWrite(p []byte) (int, error) {
	close(w.took)
	<-w.end
	return len(p), nil
}

func (w pausedWriter) Write(p []byte) (int, error) { return w.TryWrite(p) }

// What a target still takes while its stream is reset counts.
func TestAuditOfBytesUnderWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newAuditing(t)
		st, far := a.served(t, mux.Header{Target: "x:1"})
		w := pausedWriter{took: make(chan struct{}), end: make(chan struct{})}
		ended := make(chan struct{})
		st.Deliver(w, func(int64, error) { close(ended) })
		far.Write([]byte("x"))
		<-w.took
		st.Reset(mux.Denied, "revoked")
		synctest.Wait()
		if n := len(a.events(t, auditStreamEnded)); n > 0 {
			t.Error("the end is told while bytes are under way")
		}
		close(w.end)
		<-ended
		st.Close()
		end := a.event(t, auditStreamEnded, 0)
		if end["bytes_received"] != 1.0 || end["ended"] != endedRevoked {
			t.Errorf("%v, want 1 byte, and revoked", end)
		}
	})
}

// A test that there is not is not served.
func TestAuditOfUnknownTest(t *testing.T) {
	a := newAuditing(t)
	h := mux.Header{Kind: mux.KindTest, Target: "daytime"}
	st, _ := newFakeStreams(h)
	serveTest(st, nil, a.account("s").stream(st.ID(), h))
	if e := a.event(t, auditStreamFailed, 0); e["kind"] != "test" || e["target"] != "daytime" {
		t.Errorf("%v", e)
	}
}

// A login that is taken away, and limits.
func TestAuditOfWhatEnds(t *testing.T) {
	a := newAuditing(t)
	to, conns := target(t)
	guard := auth.NewGuard(limited(t, auth.Limits{Sessions: 1, Streams: 1, BytesPerDay: 100}))
	_, addr := startServer(t, func(c *ServerConfig) { c.Guard, c.Audit = guard, a.Log })
	client := startClient(t, addr, func(c *ClientConfig) { local(to)(c); remote(to)(c) })
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	defer far.Close()
	greet(t, app, far)

	wantReset(t, client.listening(t, "local"))
	e := a.event(t, auditStreamDenied, 0)
	if e["kind"] != "local" || e["limit"] != limitStreams {
		t.Errorf("over the limit: %v", e)
	}
	wantReset(t, client.listening(t, "remote"))
	e = a.event(t, auditStreamDenied, 1)
	if e["kind"] != "remote" || e["limit"] != limitStreams || e["listener"] != client.listening(t, "remote") {
		t.Errorf("over the limit: %v", e)
	}
	startClient(t, addr, func(c *ClientConfig) { c.RetryInitial = true })
	if e := a.event(t, auditSessionRefused, 0); e["identity"] != "alice" || e["error"] != link.ErrLimit.Error() {
		t.Errorf("a session over the limit: %v", e)
	}

	io.WriteString(app, strings.Repeat("x", 200))
	io.ReadFull(far, make([]byte, 200))
	io.WriteString(app, "too many")
	if e := a.event(t, auditStreamEnded, 0); e["ended"] != "limit" || e["bytes_received"] != 201.0 || e["error"] == nil {
		t.Errorf("at the limit of the day: %v", e)
	}

	nobody, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{{Name: "carol"}}})
	if err != nil {
		t.Fatal(err)
	}
	guard.Use(nobody)
	if e := a.event(t, auditLoginEnded, 0); e["identity"] != "alice" || e["error"] != auth.ErrRevoked.Error() {
		t.Errorf("a credential that is taken away: %v", e)
	}
}
