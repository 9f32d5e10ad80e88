package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// two are alice and bob, whose dials the rules are about.
func two(t testing.TB, alice, bob string) *Directory {
	t.Helper()
	var identities []Identity
	for name, rule := range map[string]string{"alice": alice, "bob": bob} {
		if rule != "" {
			p := Policy{Dial: []Rule{mustParse(rule)}, Listen: []Rule{mustParse(rule)}}
			identities = append(identities, Identity{Name: name, Policy: p})
		}
	}
	d, err := NewDirectory(DirectoryConfig{Identities: identities})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var service = netip.MustParseAddrPort("192.0.2.1:80")

func mustGrant(t testing.TB, ask func(string, Network, Host, netip.AddrPort) (*Grant, error), identity string) *Grant {
	t.Helper()
	grant, err := ask(identity, TCP, HostOf(service.Addr()), service)
	if err != nil {
		t.Fatal(err)
	}
	return grant
}

// Another directory takes back what it does not grant, and nothing else.
func TestUse(t *testing.T) {
	g := NewGuard(two(t, "allow *:80", "allow *:*"))
	told := make(map[string]error)
	grants := map[string]*Grant{
		"alice dials": mustGrant(t, g.Dial, "alice"), "alice listens": mustGrant(t, g.Listen, "alice"),
		"alice's subject dials": mustGrant(t, g.Dial, "alice/subject"), "bob dials": mustGrant(t, g.Dial, "bob"),
		"bob listens": mustGrant(t, g.Listen, "bob"),
	}
	released := mustGrant(t, g.Dial, "alice")
	released.Release()
	for name, grant := range grants {
		grant.OnRevoke(func(error) { t.Errorf("%s: not the last that was given", name) })
		grant.OnRevoke(func(err error) { told[name] = err })
	}
	released.OnRevoke(func(error) { t.Error("a released grant was revoked") })
	uses := 0
	g.OnUse(func() { uses++ })

	g.Use(two(t, "allow 192.0.2.1:*", "allow *:*"))
	if len(told) != 0 || uses != 1 {
		t.Errorf("revoked: %v; %d uses", told, uses)
	}
	if got := grants["alice dials"].Rule(); got != "allow 192.0.2.1:*" {
		t.Errorf("rule %q, want the one of now", got)
	}
	g.Use(two(t, "allow *:81", "allow *:*"))
	for name, grant := range grants {
		gone := name[0] == 'a'
		if good := grant.Dials() || grant.Listens(); good == gone || (told[name] != nil) != gone {
			t.Errorf("%s: good is %v, told %v", name, good, told[name])
		}
	}
	var denied *DeniedError
	if !errors.As(told["alice dials"], &denied) || !errors.Is(denied, ErrDenied) || denied.Op != OpDial || denied.Identity != "alice" || denied.Addr != service {
		t.Errorf("told %#v", told["alice dials"])
	}
	late := make(chan error, 1)
	grants["alice dials"].OnRevoke(func(err error) { late <- err })
	if err := <-late; !errors.Is(err, ErrDenied) {
		t.Error("who asks late is told", err)
	}

	g.Use(two(t, "allow *:*", ""))
	if grants["alice dials"].Dials() || grants["bob dials"].Dials() || told["bob listens"] == nil {
		t.Error("a revoked grant came back, or one of a removed identity is left")
	}
	if g.Knows("bob") || !g.Knows("alice/subject") {
		t.Error("knows the wrong ones")
	}
	if len(g.grants) != 0 {
		t.Errorf("%d grants are left", len(g.grants))
	}
}

// A copy of a grant is none, nor is one of another guard.
func TestGrantsAreNotCopied(t *testing.T) {
	g := NewGuard(two(t, "allow *:*", ""))
	grant := mustGrant(t, g.Dial, "alice")
	forged := &Grant{guard: g, identity: "alice", network: TCP, addr: grant.Addr()}
	if !grant.Dials() || grant.Listens() || forged.Dials() || new(Grant).Dials() || (*Grant)(nil).Dials() {
		t.Error("the wrong ones are good")
	}
}

func TestBound(t *testing.T) {
	free := netip.MustParseAddrPort("127.0.0.1:0")
	at := netip.MustParseAddrPort("127.0.0.1:40000")
	for rule, want := range map[string]bool{"allow localhost:*": true, "allow localhost:0": true, "allow localhost:0,50000": true} {
		g := NewGuard(two(t, rule, ""))
		grant, err := g.Listen("alice", TCP, HostOf(free.Addr()), free)
		if err != nil {
			t.Fatal(err)
		}
		if err := grant.Bound(at); (err == nil) != want || grant.Listens() != want || grant.Addr() != at {
			t.Errorf("%s: %v, at %s", rule, err, grant.Addr())
		}
		if err := grant.Bound(netip.MustParseAddrPort("127.0.0.1:40001")); err != nil && want {
			t.Errorf("%s: %v", rule, err)
		}
	}
	g := guardOf(t, Policy{Listen: []Rule{mustParse("deny *:40000-50000"), mustParse("allow localhost:*")}})
	grant, err := g.Listen("", TCP, HostOf(free.Addr()), free)
	if err != nil {
		t.Fatal(err)
	}
	if err := grant.Bound(at); !errors.Is(err, ErrDenied) || grant.Listens() {
		t.Errorf("a denied port was chosen: %v", err)
	}
	grant, err = g.Listen("", TCP, HostOf(at.Addr()), netip.MustParseAddrPort("127.0.0.1:8080"))
	if err != nil {
		t.Fatal(err)
	}
	if err := grant.Bound(netip.MustParseAddrPort("127.0.0.1:8081")); !errors.Is(err, ErrDenied) || grant.Listens() {
		t.Errorf("another port than was asked for: %v", err)
	}
}

// While directories come and go, no grant is good that the last one denies, and each
// that was taken back was told so once.
func TestUseWhileAsking(t *testing.T) {
	yes, no := two(t, "allow *:*", ""), two(t, "deny *:*", "")
	g := NewGuard(yes)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				grant, err := g.Dial("alice", TCP, HostOf(service.Addr()), service)
				if err != nil {
					continue
				}
				var told atomic.Int32
				grant.OnRevoke(func(error) { told.Add(1) })
				if grant.Dials() {
					grant.Release()
				}
				if told.Load() > 1 {
					t.Error("told twice")
				}
			}
		})
	}
	for range 300 {
		g.Use(no)
		if n := func() int { g.mu.Lock(); defer g.mu.Unlock(); return len(g.grants) }(); n != 0 {
			t.Fatalf("%d grants outlive their policy", n)
		}
		g.Use(yes)
	}
	close(stop)
	asking.Wait()
}

// What the directory before would have granted is asked of the one in force.
func TestUseDuringAnAnswer(t *testing.T) {
	g := NewGuard(two(t, "allow *:*", ""))
	g.Protect(func(string, netip.AddrPort) bool { // asked in the midst of it
		if g.Knows("alice") {
			g.Use(guardOf(t, Policy{}).current())
		}
		return false
	})
	if grant, err := g.Dial("alice", TCP, HostOf(service.Addr()), service); !errors.Is(err, ErrDenied) {
		t.Errorf("granted %v, %v", grant, err)
	}
}

func TestGrantIsSmall(t *testing.T) {
	size := unsafe.Sizeof(Grant{})
	t.Logf("a grant is %d bytes", size)
	if size > 144 {
		t.Error("one is held for every stream")
	}
}

// BenchmarkUse is a reload with 50,000 streams and a policy of 100 rules. It shows
// how long asking had to wait at most meanwhile.
func BenchmarkUse(b *testing.B) {
	var policy Policy
	for i := range 100 {
		policy.Dial = append(policy.Dial, mustParse(fmt.Sprintf("deny 10.%d.0.0/16:*", i)))
	}
	policy.Dial = append(policy.Dial, mustParse("allow *:*"))
	g := guardOf(b, policy)
	for range 50_000 {
		mustGrant(b, g.Dial, "")
	}
	stop, slowest := make(chan struct{}), time.Duration(0)
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			mustGrant(b, g.Dial, "").Release()
			slowest = max(slowest, time.Since(began))
		}
	})
	d := g.current()
	for b.Loop() {
		g.Use(d)
	}
	close(stop)
	asking.Wait()
	b.ReportMetric(float64(slowest.Microseconds())/1000, "ms-slowest-ask")
}

func BenchmarkDial(b *testing.B) {
	g := guardOf(b, Everything())
	b.ReportAllocs()
	for b.Loop() {
		mustGrant(b, g.Dial, "").Release()
	}
}
