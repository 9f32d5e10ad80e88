package tunnel

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/test/bubble"
)

// newFlooded is what identities use of a server with these limits, with its audit log and
// its log.
func newFlooded(t testing.TB, l auth.Limits) (us *usages, a auditing, log *slog.Logger, lines *journal) {
	us, a = testUsages(t, l), newAuditing(t)
	log, lines = newJournal(t)
	us.floods = newFloods(newEvents(Settings{Logger: log}), a.Log)
	return us, a, log, lines
}

// count says how many events of a kind and an identity the audit log has, and how many it
// says were left out.
func (a auditing) count(t testing.TB, event, identity string) (written, leftOut int) {
	t.Helper()
	for _, e := range a.events(t, event) {
		if e["identity"] != identity {
			continue
		}
		if n, ok := e["left_out"].(float64); ok {
			leftOut += int(n)
		} else {
			written++
		}
	}
	return written, leftOut
}

// Of a flood so many lines are written in each second, and how many are not. Other events
// and other identities are not concerned.
func TestFloods(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		us, a, _, log := newFlooded(t, auth.Limits{})
		alices, bobs, other := flood{"refused", "e", "alice"}, flood{"refused", "e", "bob"}, flood{"", "other", "alice"}
		happens := func(f flood) {
			if us.floods.admit(f) {
				a.Event(f.event, slog.String("identity", f.identity))
			}
		}
		want := func(event, identity string, written, leftOut int) {
			t.Helper()
			if w, l := a.count(t, event, identity); w != written || l != leftOut {
				t.Errorf("%s of %s: %d lines, %d left out, want %d and %d", event, identity, w, l, written, leftOut)
			}
		}
		for range 10 {
			for range 1000 {
				happens(alices)
			}
			happens(bobs)
			happens(other)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		written, leftOut := 10*toldPerSecond, 10*(1000-toldPerSecond)
		want("e", "alice", written, leftOut)
		want("e", "bob", 10, 0)
		want("other", "alice", 10, 0)
		logged := 0
		for line := range strings.Lines(log.String()) {
			_, n, _ := strings.Cut(line, "level=WARN msg=refused client=alice left_out=")
			left, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Error(err)
			}
			logged += left
		}
		if logged != leftOut {
			t.Errorf("the log has %d left out, want %d", logged, leftOut)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(us.floods.of) > 0 {
			t.Errorf("%d floods are remembered", len(us.floods.of))
		}
		for range toldPerSecond + 3 {
			happens(alices)
		}
		want("e", "alice", written+toldPerSecond, leftOut)
		us.floods.flush()
		want("e", "alice", written+toldPerSecond, leftOut+3)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		want("e", "alice", written+toldPerSecond, leftOut+3)
	})
}

// An identity that asks for what it may not have fills neither log, and hides nothing that
// another one does.
func TestFloodOfDenials(t *testing.T) {
	const many = 1000
	nowhere, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{{Name: "alice"}, {Name: "bob"}}})
	if err != nil {
		t.Fatal(err)
	}
	guard := auth.NewGuard(nowhere)
	taken := listenLoopback(t).Addr().String()
	for _, tt := range []struct {
		event, msg string
		limits     auth.Limits
		ask        func(ls *listeners, p *testPeer)
	}{
		{auditListenDenied, "listen refused", auth.Limits{}, func(ls *listeners, p *testPeer) {
			ls.listen(t.Context(), p.peer, 1, "127.0.0.1:80")
		}},
		{auditListenFailed, "listen refused", auth.Limits{}, func(ls *listeners, p *testPeer) {
			free := newTestListeners(t, everything(t))
			free.listen(t.Context(), p.peer, 1, taken)
		}},
		{auditListenDenied, "", auth.Limits{OpensPerSecond: 2}, func(ls *listeners, p *testPeer) {
			ls.listen(t.Context(), p.peer, 1, "127.0.0.1:80")
		}},
		{auditStreamDenied, "target refused", auth.Limits{}, func(_ *listeners, p *testPeer) {
			_, acceptor := newFakeStreams(mux.Header{Target: taken})
			d := &dialer{guard: guard, identity: p.identity, timeout: time.Minute, usage: p.usage}
			serveTarget(d, acceptor, p.id, taken, p.log, p.account.stream(1, acceptor.Header()))
		}},
		{auditStreamFailed, "target refused", auth.Limits{}, func(_ *listeners, p *testPeer) {
			_, acceptor := newFakeStreams(mux.Header{Target: "nonsense"})
			d := &dialer{guard: guard, identity: p.identity, timeout: time.Minute, usage: p.usage}
			serveTarget(d, acceptor, p.id, "nonsense", p.log, p.account.stream(1, acceptor.Header()))
		}},
	} {
		t.Run(fmt.Sprint(tt.event, tt.limits.OpensPerSecond), func(t *testing.T) {
			us, a, log, lines := newFlooded(t, tt.limits)
			ls := newTestListeners(t, guard)
			peerOf := func(identity string) *testPeer {
				p := newPeer(t, identity)
				p.usage = us.join(identity)
				p.log = newEvents(Settings{Logger: log}).with(keyClient, identity)
				p.account = a.account("s")
				p.account.identity = identity
				return p
			}
			alice, bob := peerOf("alice"), peerOf("bob")
			began := time.Now()
			for range many {
				tt.ask(ls, alice)
			}
			tt.ask(ls, bob)
			seconds := int(time.Since(began)/time.Second) + 1
			us.floods.flush()
			// What is denied by the policy and what is over a limit are counted apart.
			most := 2 * toldPerSecond * (seconds + 1)
			if written, leftOut := a.count(t, tt.event, "alice"); written > most || written+leftOut != many {
				t.Errorf("%d lines in %d s, and %d left out, of %d", written, seconds, leftOut, many)
			}
			if written, _ := a.count(t, tt.event, "bob"); written != 1 {
				t.Errorf("%d lines of another identity", written)
			}
			text := lines.String()
			if n := strings.Count(text, "level=WARN"); n > 2*most {
				t.Errorf("%d lines of the log", n)
			}
			if tt.msg != "" && strings.Count(text, `msg="`+tt.msg+`" client=bob`) != 1 {
				t.Errorf("the log does not have what another identity does:\n%s", text)
			}
		})
	}
}

// Listeners may be asked for as fast as streams may be opened, but for as many at once as a
// session may have.
func TestListensAreOpens(t *testing.T) {
	ls := newTestListeners(t, everything(t))
	p := newPeer(t, "alice")
	p.usage.all.forwards = 3
	p.usage.limit(auth.Limits{OpensPerSecond: 1})
	for i := range 3 {
		_, stop := mustListen(t, ls, p, uint32(i), "127.0.0.1:0")
		stop()
	}
	_, err := ls.listen(t.Context(), p.peer, 3, "127.0.0.1:0")
	wantLimit(t, err, limitOpens)
}

// Connections to the listener of an identity that are not served do not fill the log.
func TestFloodOfVisitors(t *testing.T) {
	const many = 100
	us, _, log, lines := newFlooded(t, auth.Limits{OpensPerSecond: 1})
	ls := newTestListeners(t, everything(t))
	ls.log = newEvents(Settings{Logger: log})
	p := newPeer(t, "alice")
	p.usage = us.join("alice")
	if err := p.usage.enter(); err != nil { // that was the one for now
		t.Fatal(err)
	}
	addr, _ := mustListen(t, ls, p, 1, "127.0.0.1:0")
	began := time.Now()
	for range many {
		wantReset(t, addr)
	}
	most := toldPerSecond * (int(time.Since(began)/time.Second) + 2)
	if n := strings.Count(lines.String(), `msg="target refused"`); n == 0 || n > most {
		t.Errorf("%d lines of %d connections", n, many)
	}
}

// Connections of an identity, each of which is a login, fill the audit log neither.
func TestFloodOfLogins(t *testing.T) {
	a := newAuditing(t)
	s := &Server{cfg: ServerConfig{Audit: a.Log}, usages: testUsages(t, auth.Limits{})}
	s.usages.floods = newFloods(newEvents(Settings{Logger: slog.New(slog.DiscardHandler)}), a.Log)
	for range 10 * toldPerSecond {
		s.recordLogin(auditLogin, &auth.Login{Identity: "alice"}, slog.String(keyIdentity, "alice"))
	}
	s.recordLogin(auditLogin, &auth.Login{Identity: "bob"}, slog.String(keyIdentity, "bob"))
	s.usages.floods.flush()
	if written, leftOut := a.count(t, auditLogin, "alice"); written > 3*toldPerSecond || written+leftOut != 10*toldPerSecond {
		t.Errorf("%d lines, %d left out", written, leftOut)
	}
	if written, _ := a.count(t, auditLogin, "bob"); written != 1 {
		t.Errorf("%d lines of another identity", written)
	}
}
