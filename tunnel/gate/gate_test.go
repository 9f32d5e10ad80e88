package gate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"culvert/auth"
)

func guard(t *testing.T, dial, listen string) *auth.Guard {
	t.Helper()
	return auth.NewGuard(directory(t, dial, listen))
}

// directory lets everybody in, with at most one rule of each kind.
func directory(t *testing.T, dial, listen string) *auth.Directory {
	t.Helper()
	var policy auth.Policy
	for text, rules := range map[string]*[]auth.Rule{dial: &policy.Dial, listen: &policy.Listen} {
		if text == "" {
			continue
		}
		r, err := auth.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		*rules = []auth.Rule{r}
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{Anybody: &auth.Identity{Policy: policy}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func host(t *testing.T, text string) auth.Host {
	t.Helper()
	h, err := auth.ParseHost(text)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Only a grant that a guard made, that is good at the moment and is for this opens
// anything.
func TestOnlyGrantsOpen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := netip.MustParseAddrPort(ln.Addr().String())
	free := netip.MustParseAddrPort("127.0.0.1:0")
	g := guard(t, "allow 127.0.0.1:*", "allow localhost:*")
	grant := func(ask func(string, auth.Network, auth.Host, netip.AddrPort) (*auth.Grant, error), addr netip.AddrPort) *auth.Grant {
		t.Helper()
		grant, err := ask("", auth.TCP, auth.HostOf(addr.Addr()), addr)
		if err != nil {
			t.Fatal(err)
		}
		return grant
	}
	released, revoked := grant(g.Dial, addr), grant(g.Dial, addr)
	released.Release()
	closed := grant(g.Listen, free)
	closed.Release()
	g.Use(directory(t, "deny *:*", "allow localhost:*"))
	g.Use(directory(t, "allow 127.0.0.1:*", "allow localhost:*")) // a revoked one does not come back
	dials, listens := grant(g.Dial, addr), grant(g.Listen, free)

	for name, bad := range map[string]*auth.Grant{
		"none": nil, "zero": new(auth.Grant), "released": released, "revoked": revoked, "to listen": listens,
	} {
		if conn, err := Dial(t.Context(), bad); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("dialled with a grant that is %s: %v, %v", name, conn, err)
		}
	}
	for name, bad := range map[string]*auth.Grant{
		"none": nil, "zero": new(auth.Grant), "released": closed, "to dial": dials,
	} {
		if ln, err := Listen(t.Context(), bad, 0); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("listened with a grant that is %s: %v, %v", name, ln, err)
		}
	}
	conn, err := Dial(t.Context(), dials)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	own, err := Listen(t.Context(), listens, 0)
	if err != nil {
		t.Fatal(err)
	}
	own.Close()
	if got := own.Addr().String(); got != listens.Addr().String() {
		t.Errorf("listening at %s with leave for %s", got, listens.Addr())
	}
}

// The port that the system chose is asked about too.
func TestChosenPort(t *testing.T) {
	free := netip.MustParseAddrPort("127.0.0.1:0")
	for _, tt := range []struct {
		rule string
		ok   bool
	}{
		{"allow localhost:*", true}, {"allow localhost:0", true}, {"allow localhost:1-2", false},
	} {
		g := guard(t, "", tt.rule)
		grant, err := g.Listen("", auth.TCP, host(t, "localhost"), free)
		if err != nil {
			if tt.ok {
				t.Errorf("%s: %v", tt.rule, err)
			}
			continue
		}
		ln, err := Listen(t.Context(), grant, 0)
		if err == nil {
			// A policy that denies the port it became takes it back.
			g.Use(directory(t, "", fmt.Sprintf("deny *:%d", grant.Addr().Port())))
			if grant.Listens() {
				t.Errorf("%s: still good", tt.rule)
			}
			ln.Close()
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.rule, err)
		}
	}
}
