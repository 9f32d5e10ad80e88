package link

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

// admitted is what Admit returned, or its error.
type admitted struct {
	attach func(Carrier)
	cancel func()
	err    error
}

func admit(r *Registry, identity string, h hello) admitted {
	_, attach, cancel, err := r.Admit(identity, "test", false, h.encode())
	return admitted{attach, cancel, err}
}

// ride attaches a pipe, whose other end nobody serves.
func (a admitted) ride(t *testing.T) *linktest.Pipe {
	t.Helper()
	if a.err != nil {
		t.Fatal(a.err)
	}
	p := linktest.NewPipe(8, false)
	a.attach(p.Server)
	synctest.Wait()
	return p
}

func newHello() hello { return hello{id: newSessionID(), maxMessage: MaxMessage} }

// links are the registry's links by session.
func (r *Registry) links() map[SessionID]*Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	links := map[SessionID]*Link{}
	for id, s := range r.sessions {
		links[id] = s.link
	}
	return links
}

// over ends all sessions.
func (r *Registry) over() {
	for _, l := range r.links() {
		l.abandon(ErrClosed)
	}
	r.Wait()
}

// A session does not expire under a handshake, nor make room for another; its
// time begins anew when the last handshake has failed.
func TestHandshakeKeepsSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const window = 10 * time.Second
		r := NewRegistry(RegistryConfig{Config: Config{ResumeWindow: window}, MaxPerIdentity: 1})
		h := newHello()
		admit(r, "alice", h).ride(t).Cut()
		synctest.Wait()
		h.resume = true
		first, second := admit(r, "alice", h), admit(r, "alice", h)
		if first.err != nil || second.err != nil {
			t.Fatal(first.err, second.err)
		}
		stays := func(when string) {
			t.Helper()
			synctest.Wait()
			if r.Len() != 1 {
				t.Fatalf("%s: no session left", when)
			}
		}
		time.Sleep(2 * window)
		stays("two handshakes")
		if err := admit(r, "alice", newHello()).err; !errors.Is(err, ErrLimit) {
			t.Errorf("another session: %v, want %v", err, ErrLimit)
		}
		first.cancel()
		time.Sleep(2 * window)
		stays("one handshake")
		second.cancel()
		time.Sleep(window - 1)
		stays("before the window's end")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if r.Len() != 0 {
			t.Error("session left after the resume window")
		}
		r.Wait()
	})
}

// A session that has ended cannot be resumed, although its owner has not
// returned yet.
func TestAdmitEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := NewRegistry(RegistryConfig{Open: func(*Link, string, string) { <-release }})
		h := newHello()
		admit(r, "alice", h).ride(t)
		r.links()[h.id].abandon(ErrExpired)
		if err := admit(r, "alice", h).err; !errors.Is(err, ErrGone) {
			t.Errorf("ended session: %v, want %v", err, ErrGone)
		}
		close(release)
		r.Wait()
		if n := r.Len(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
}

// A session ends when Open returns.
func TestOpenReturns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{Open: func(*Link, string, string) {}})
		h := newHello()
		admit(r, "alice", h).ride(t)
		r.Wait()
		if n := r.Len(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
}

// A session whose upgrade was under way at Stop may begin while Wait is called.
func TestBeginDuringWait(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := NewRegistry(RegistryConfig{Open: func(*Link, string, string) { <-release }})
		underWay := admit(r, "alice", newHello())
		r.Stop()
		waited := make(chan struct{})
		go func() {
			defer close(waited)
			r.Wait()
		}()
		underWay.ride(t)
		close(release)
		<-waited
		r.Wait()
		if n := r.Len(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
}

// At the limit the identity's session that is without a carrier for longest
// makes room, never one of another identity.
func TestMakeRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{MaxSessions: 5, MaxPerIdentity: 4})
		var ids []SessionID
		var pipes []*linktest.Pipe
		for _, identity := range []string{"bob", "alice", "alice", "alice", "alice"} {
			h := newHello()
			ids = append(ids, h.id)
			pipes = append(pipes, admit(r, identity, h).ride(t))
		}
		for _, i := range []int{0, 3, 1, 4} {
			pipes[i].Cut()
			time.Sleep(time.Second)
		}
		links := r.links()
		for _, i := range []int{3, 1, 4} {
			admit(r, "alice", newHello()).ride(t)
			if err := links[ids[i]].Err(); !errors.Is(err, ErrLimit) {
				t.Errorf("session %d: %v, want %v", i, err, ErrLimit)
			}
		}
		for _, identity := range []string{"alice", "carol"} {
			if err := admit(r, identity, newHello()).err; !errors.Is(err, ErrLimit) {
				t.Errorf("%s: %v, want %v", identity, err, ErrLimit)
			}
		}
		for _, i := range []int{0, 2} {
			if err := links[ids[i]].Err(); err != nil {
				t.Errorf("session %d: %v", i, err)
			}
		}
		links[ids[2]].abandon(ErrClosed)
		synctest.Wait()
		if err := admit(r, "alice", newHello()); err.err != nil {
			t.Errorf("after the end of another: %v", err.err)
		} else {
			err.cancel()
		}
		r.over()
		if len(r.perIdentity) != 0 {
			t.Errorf("%v counted after the end of all sessions", r.perIdentity)
		}
	})
}

// The owner is told of each carrier and why it was lost, but not that it was lost
// by the session's end.
func TestRegistryTells(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var resumed []bool
		var lost []error
		r := NewRegistry(RegistryConfig{
			Attached: func(_ *Link, _ string, again bool, _ Carrier) {
				mu.Lock()
				defer mu.Unlock()
				resumed = append(resumed, again)
			},
			Lost: func(_ *Link, _ string, err error) {
				mu.Lock()
				defer mu.Unlock()
				lost = append(lost, err)
			},
		})
		h := newHello() // the client misses each answer, so it never says resume
		admit(r, "alice", h).ride(t)
		admit(r, "alice", h).ride(t).Cut()
		synctest.Wait()
		admit(r, "alice", h).ride(t)
		r.over()
		if want := []bool{false, true, true}; !slices.Equal(resumed, want) {
			t.Errorf("attached %v, want %v", resumed, want)
		}
		if len(lost) != 2 || !errors.Is(lost[0], ErrDisplaced) || !errors.Is(lost[1], linktest.ErrCut) {
			t.Errorf("lost %v, want %v and %v", lost, ErrDisplaced, linktest.ErrCut)
		}
	})
}

// Nothing was ever sent in a new session: a client that has received something of it
// gets none, and no other session makes room for it.
func TestReceivedInANewSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{MaxPerIdentity: 1})
		defer r.over()
		old := newHello()
		admit(r, "alice", old).ride(t).Cut()
		synctest.Wait()
		h := newHello()
		h.received = 1
		if err := admit(r, "alice", h).err; !errors.Is(err, ErrMalformed) {
			t.Errorf("%v, want %v", err, ErrMalformed)
		}
		if l := r.links()[old.id]; r.Len() != 1 || l == nil || l.Err() != nil {
			t.Error("the other session is gone")
		}
	})
}

// refused says why a carrier that was attached to a registry was aborted.
func refused(t *testing.T, p *linktest.Pipe) error {
	t.Helper()
	_, err := p.Client.ReadMessage(make([]byte, MaxMessage))
	return err
}

// A handshake whose carrier comes after that of a later one does not end the later
// one, whether that lives or not.
func TestStaleHandshake(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{})
		defer r.over()
		h := newHello()
		first := admit(r, "alice", h)
		_, considered, err := r.Consider("alice", "test", true, h.encode())
		if err != nil {
			t.Fatal(err)
		}
		last := admit(r, "alice", h).ride(t)
		l := r.links()[h.id]
		stale := func(attach func(Carrier), why error) {
			t.Helper()
			p := linktest.NewPipe(8, false)
			attach(p.Server)
			if err := refused(t, p); !errors.Is(err, why) {
				t.Errorf("stale carrier: %v, want %v", err, why)
			}
		}
		stale(first.attach, ErrStale)
		stale(considered, ErrDisplaced)
		if l.Carrier() != Carrier(last.Server) {
			t.Fatal("the later one was displaced")
		}

		early := admit(r, "alice", h)
		if _, considered, err = r.Consider("alice", "test", true, h.encode()); err != nil {
			t.Fatal(err)
		}
		late := admit(r, "alice", h).ride(t)
		stale(considered, ErrStale)
		late.Cut()
		synctest.Wait()
		stale(early.attach, ErrStale)
		if l.Attached() {
			t.Error("a stale carrier is attached")
		}
	})
}

// A hello that says to have received what was never sent, or less than was
// acknowledged, is refused, and the live carrier goes on.
func TestReceivedIsCheckedFirst(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "hello")
		e.say(e.server, e.client, "answer")
		time.Sleep(time.Second) // acknowledged
		live := e.server.Carrier()
		for _, received := range []uint64{0, 5, 7, 1 << 63} {
			for _, beside := range []bool{false, true} {
				h := hello{resume: true, beside: beside, id: e.client.id, received: received, maxMessage: MaxMessage}
				if beside && received < 6 {
					continue // the carrier beside has brought the rest
				}
				if err := admit(e.registry, "alice", h).err; !errors.Is(err, ErrMalformed) {
					t.Errorf("%d bytes received, beside %v: %v, want %v", received, beside, err, ErrMalformed)
				}
				_, attach, err := e.registry.Consider("alice", "test", true, h.encode())
				if err != nil {
					t.Fatal(err)
				}
				p := linktest.NewPipe(8, false)
				attach(p.Server)
				if err := refused(t, p); !errors.Is(err, ErrMalformed) {
					t.Errorf("%d bytes received, beside %v: carrier ended with %v", received, beside, err)
				}
			}
		}
		// What is wrong by the time that the carrier is there is refused then.
		h := hello{resume: true, id: e.client.id, received: 6, maxMessage: MaxMessage}
		late := admit(e.registry, "alice", h)
		e.say(e.server, e.client, "more")
		time.Sleep(time.Second)
		if err := refused(t, late.ride(t)); !errors.Is(err, ErrProtocol) {
			t.Errorf("carrier ended with %v, want %v", err, ErrProtocol)
		}
		if e.server.Carrier() != live {
			t.Error("the live carrier was displaced")
		}
		e.say(e.client, e.server, "and on")
	})
}

// Many that present the hello of one session displace each other seldom; who comes
// back after a cut, or a few times in a row, is not kept waiting.
func TestDisplacementsAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		displaced := 0
		r := NewRegistry(RegistryConfig{Lost: func(_ *Link, _ string, err error) {
			if errors.Is(err, ErrDisplaced) {
				displaced++
			}
		}})
		defer r.over()
		h := newHello()
		admit(r, "alice", h).ride(t)
		storm := func(d time.Duration) (busy int) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				var together []admitted
				for range 5 {
					if a := admit(r, "alice", h); a.err == nil {
						together = append(together, a)
					} else if !errors.Is(a.err, ErrBusy) {
						t.Fatal(a.err)
					} else {
						busy++
					}
				}
				for _, a := range together {
					a.ride(t)
				}
			}
			return busy
		}
		if storm(10*time.Second) == 0 || displaced < displacements || displaced > 11*displacements+1 {
			t.Errorf("%d displaced in ten seconds, want %d, and as many in each second", displaced, displacements)
		}
		if !r.links()[h.id].Attached() {
			t.Error("no carrier after the storm")
		}
		for range 100 { // lost carriers do not count
			r.links()[h.id].Carrier().Abort(linktest.ErrCut)
			synctest.Wait()
			admit(r, "alice", h).ride(t)
		}
		time.Sleep(time.Minute)
		for range displacements {
			admit(r, "alice", h).ride(t)
		}
	})
}

// One identity does not keep the server busy with handshakes. Others do not wait for it.
func TestHandshakesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{MaxPerIdentity: 2})
		defer r.over()
		count := func(identity string, d time.Duration) (admitted int) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
				a := admit(r, identity, newHello())
				if a.err == nil {
					admitted++
					a.cancel()
				} else if !errors.Is(a.err, ErrBusy) {
					t.Fatal(a.err)
				}
			}
			return admitted
		}
		if n := count("alice", 10*time.Second); n < minHandshakes || n > minHandshakes*7/2+1 {
			t.Errorf("%d handshakes in ten seconds", n)
		}
		if n := count("bob", minHandshakes*time.Millisecond); n != minHandshakes {
			t.Errorf("%d handshakes of another identity, want %d", n, minHandshakes)
		}
		time.Sleep(time.Minute)
		for i := range 2 * minSweep {
			admit(r, "one-of-many-"+strconv.Itoa(i), newHello()).cancel()
			time.Sleep(time.Minute)
		}
		if n := len(r.handshakes); n > minSweep {
			t.Errorf("%d identities are remembered", n)
		}
	})
}

// A session is over as soon as the peer was told so.
func TestGoneAfterBye(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{})
		h := newHello()
		early := admit(r, "alice", h)
		c := &lingering{Carrier: linktest.NewPipe(8, false).Server, closing: make(chan struct{})}
		admit(r, "alice", h).attach(c)
		late := admit(r, "alice", h)
		go r.links()[h.id].Close("over")
		synctest.Wait() // the bye is sent, and the close frame not answered yet
		if err := admit(r, "alice", h).err; !errors.Is(err, ErrGone) {
			t.Errorf("after the bye: %v, want %v", err, ErrGone)
		}
		if _, _, err := r.Consider("alice", "test", true, h.encode()); !errors.Is(err, ErrGone) {
			t.Errorf("considered after the bye: %v, want %v", err, ErrGone)
		}
		for _, a := range []admitted{early, late} {
			if err := refused(t, a.ride(t)); err == nil {
				t.Error("a carrier was attached after the bye")
			}
		}
		close(c.closing)
		r.Wait()
	})
}

// lingering is a carrier that waits for its peer in Close.
type lingering struct {
	Carrier
	closing chan struct{}
}

func (c *lingering) Close(reason string) error {
	<-c.closing
	return c.Carrier.Close(reason)
}

// Messages have a checksum unless both ends are under TLS, and are as large as
// the receiver wants them.
func TestTerms(t *testing.T) {
	for _, secure := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		bubble.Test(t, func(t *testing.T) {
			opened := make(chan *Link, 1)
			r := NewRegistry(RegistryConfig{Config: Config{MaxMessage: 8 << 10}, Open: func(l *Link, _, _ string) {
				opened <- l
				<-l.Done()
			}})
			l := New(Config{MaxMessage: 16 << 10})
			handle(l, nil)
			var mu sync.Mutex
			var largest [2]int
			sealed := [2]bool{true, true}
			maintained := make(chan error, 1)
			go func() {
				maintained <- l.Maintain(t.Context(), Redial{
					Secure: secure[0],
					Dial: func(_ context.Context, hello []byte) (Carrier, []byte, error) {
						reply, attach, _, err := r.Admit("alice", "test", secure[1], hello)
						if err != nil {
							return nil, nil, err
						}
						p := linktest.NewPipe(8, true)
						for i, up := range []bool{true, false} {
							p.Filter(up, func(m []byte) [][]byte {
								mu.Lock()
								defer mu.Unlock()
								_, err := parse(m, true)
								largest[i], sealed[i] = max(largest[i], len(m)), sealed[i] && err == nil
								return [][]byte{m}
							})
						}
						attach(p.Server)
						return p.Client, reply, nil
					},
				})
			}()
			server := <-opened
			handle(server, nil)
			for _, end := range []*Link{l, server} {
				if _, err := end.Write(make([]byte, 64<<10)); err != nil {
					t.Fatal(err)
				}
				if err := end.Flush(nil); err != nil {
					t.Fatal(err)
				}
			}
			want, wantSealed := [2]int{8 << 10, 16 << 10}, !(secure[0] && secure[1])
			if !wantSealed { // the trailer's room stays free
				want[0], want[1] = want[0]-trailerSize, want[1]-trailerSize
			}
			if largest != want || sealed != [2]bool{wantSealed, wantSealed} {
				t.Errorf("secure %v: messages of %v bytes with checksum %v, want %v and %v", secure, largest, sealed, want, wantSealed)
			}
			l.Close("over")
			<-maintained
			r.Wait()
		})
	}
}

// A request that is only considered changes nothing: no session is made or kept, none
// is ended to make room, and no carrier is displaced.
func TestConsider(t *testing.T) {
	consider := func(r *Registry, identity string, h hello) (rep reply, attach func(Carrier), err error) {
		b, attach, err := r.Consider(identity, "test", true, h.encode())
		if err == nil {
			rep, _ = decodeReply(b)
		}
		return rep, attach, err
	}
	bubble.Test(t, func(t *testing.T) {
		const window = 10 * time.Second
		r := NewRegistry(RegistryConfig{Config: Config{ResumeWindow: window}, MaxPerIdentity: 1})
		defer r.over()
		first := newHello()
		rep, attach, err := consider(r, "alice", first)
		if err != nil || rep.resumed || !rep.secure || r.Len() != 0 {
			t.Fatalf("%+v, %v, %d sessions", rep, err, r.Len())
		}
		old := admitted{attach: attach}.ride(t)
		if r.Len() != 1 {
			t.Fatal("not admitted")
		}
		l := r.links()[first.id]

		// With a carrier: it stays, whatever is considered.
		first.resume = true
		if rep, _, err := consider(r, "alice", first); err != nil || !rep.resumed || !l.Attached() {
			t.Errorf("%+v, %v", rep, err)
		}
		if _, _, err := consider(r, "bob", first); !errors.Is(err, ErrGone) {
			t.Errorf("of another identity: %v", err)
		}
		if _, _, err := consider(r, "alice", strange()); !errors.Is(err, ErrGone) {
			t.Errorf("unknown: %v", err)
		}
		if _, _, err := consider(r, "alice", newHello()); !errors.Is(err, ErrLimit) {
			t.Errorf("one too many: %v", err)
		}

		// Without: it makes no room for one that is considered, and expires.
		old.Cut()
		synctest.Wait()
		_, attachNew, err := consider(r, "alice", newHello())
		if err != nil || r.links()[first.id] != l || l.Err() != nil {
			t.Errorf("a new one beside a detached one: %v, %v", err, l.Err())
		}
		_, attachOld, err := consider(r, "alice", first)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(window + time.Second)
		synctest.Wait()
		if r.Len() != 0 {
			t.Error("it was kept")
		}
		p := linktest.NewPipe(8, false)
		attachOld(p.Server)
		if _, err := p.Client.ReadMessage(make([]byte, MaxMessage)); err == nil || r.Len() != 0 {
			t.Error("attached to a session that has ended")
		}
		admitted{attach: attachNew}.ride(t)
		if r.Len() != 1 {
			t.Error("the new one was not admitted")
		}
	})
}

// Two carriers that were considered with the same first hello: the second must not
// believe that the session is new.
func TestConsiderTwice(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{})
		defer r.over()
		h := newHello()
		var attach [2]func(Carrier)
		for i := range attach {
			var err error
			if _, attach[i], err = r.Consider("alice", "test", true, h.encode()); err != nil {
				t.Fatal(err)
			}
		}
		admitted{attach: attach[0]}.ride(t)
		p := linktest.NewPipe(8, false)
		attach[1](p.Server)
		if _, err := p.Client.ReadMessage(make([]byte, MaxMessage)); err == nil {
			t.Error("attached")
		}
		if l := r.links()[h.id]; l == nil || !l.Attached() {
			t.Error("the first one was displaced")
		}
	})
}

// strange is a hello that resumes a session that nobody knows.
func strange() hello {
	h := newHello()
	h.resume = true
	return h
}

// The identities of a group have its limit together, and makes room for nobody else's.
func TestGroupLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		most := 3
		r := NewRegistry(RegistryConfig{MaxPerIdentity: 2, GroupOf: func(identity string) (string, int) {
			group, _, _ := strings.Cut(identity, "/")
			if group != "ops" {
				return group, 0
			}
			return group, most
		}})
		for _, tt := range []struct {
			identity string
			want     error
		}{
			{"ops/a", nil}, {"ops/a", nil}, {"ops/a", ErrLimit}, {"ops/b", nil}, {"ops/b", ErrLimit}, {"ops/c", ErrLimit}, {"dev/a", nil}, {"ops2/a", nil},
		} {
			a := admit(r, tt.identity, newHello())
			if !errors.Is(a.err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.identity, a.err, tt.want)
			}
			if a.err == nil {
				a.ride(t)
			}
		}
		most = 4
		if a := admit(r, "ops/c", newHello()); a.err != nil {
			t.Errorf("with a higher limit: %v", a.err)
		} else {
			a.cancel()
		}
		for _, l := range r.links() {
			l.abandon(ErrClosed)
		}
		r.Wait()
	})
}
