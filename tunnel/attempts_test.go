package tunnel

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier"
)

// Each attempt is reported once, and an address with many does not hide another.
func TestAttempts(t *testing.T) {
	var a attempts
	now := time.Now()
	addr := netip.MustParseAddr("2001:db8::1")
	neighbour := netip.MustParseAddr("2001:db8::2") // of the same network
	other := netip.MustParseAddr("192.0.2.1")
	note := func(from netip.Addr, credential string, report bool, leftOut int) {
		t.Helper()
		gotReport, gotLeftOut := a.note(from, credentialOf(auth.Presented{Bearer: credential}), now)
		if gotReport != report || gotLeftOut != leftOut {
			t.Errorf("%s with %q: %t, %d left out, want %t, %d", from, credential, gotReport, gotLeftOut, report, leftOut)
		}
	}
	note(addr, "one", true, 0)
	note(addr, "one", false, 0)
	note(neighbour, "one", false, 0)
	note(other, "one", true, 0)
	for i := range attemptsPerAddress - 1 {
		note(addr, fmt.Sprint(i), true, 0)
	}
	for i := range 7 {
		note(addr, fmt.Sprint("more ", i), false, 0)
	}
	note(other, "two", true, 0)
	now = now.Add(attemptWindow)
	note(addr, "one", true, 7)
	note(addr, "two", true, 0)
}

func TestAttemptsOfManyAddresses(t *testing.T) {
	var a attempts
	now := time.Now()
	reports := 0
	for i := range 4 * maxAttempting {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if report, _ := a.note(addr, credential{byte(i), byte(i >> 8)}, now); report {
			reports++
		}
	}
	if reports != attemptsPerSecond || len(a.byAddr) > maxAttempting+1 {
		t.Errorf("%d reports, %d addresses kept, want %d and %d at most", reports, len(a.byAddr), attemptsPerSecond, maxAttempting+1)
	}
	if report, _ := a.note(netip.MustParseAddr("10.0.0.1"), credential{9}, now.Add(time.Second)); !report {
		t.Error("nothing is reported in the next second")
	}
	if report, leftOut := a.note(netip.MustParseAddr("192.0.2.2"), credential{}, now.Add(attemptWindow)); !report || leftOut != 0 {
		t.Errorf("a new address after the flood: %t, %d left out", report, leftOut)
	}
}

func TestCredentialsAreToldApart(t *testing.T) {
	seen := make(map[credential]auth.Presented)
	for _, p := range []auth.Presented{
		{}, {Garbled: true}, {Bearer: "a"}, {Bearer: "ab"}, {User: "a", Password: "b"}, {User: "ab"}, {User: "a"},
		{Key: &[32]byte{1}}, {Key: &[32]byte{2}},
	} {
		c := credentialOf(p)
		if other, ok := seen[c]; ok {
			t.Errorf("%+v and %+v are the same", p, other)
		}
		seen[c] = p
	}
}

// The log and the audit log say once what was refused: also of a client that tries a
// WebSocket and an HTTP pipe, as one does that a stealthy server does not let in.
func TestRefusedLoginIsLogged(t *testing.T) {
	for _, stealth := range []bool{false, true} {
		t.Run(fmt.Sprintf("stealth %t", stealth), func(t *testing.T) {
			log := newAuditing(t)
			server, at := startServer(t, func(c *ServerConfig) { c.Stealth, c.Audit = stealth, log.Log })
			_ = refusedWith(t, at, func(c *ClientConfig) {
				c.Carrier = carrier.ModeAuto
				c.Credential = func() (string, error) { return "not-the-right-token", nil }
			})
			server.find(t, "level=WARN", `msg="login refused"`, "remote=127.0.0.1:", "credential=token", `reason="unknown token"`)
			if n := strings.Count(server.String(), "login refused"); n != 1 {
				t.Errorf("%d lines for one attempt", n)
			}
			if strings.Contains(server.String(), "not-the-right-token") {
				t.Error("the log shows the token")
			}
			if n := len(log.events(t, auditLoginRefused)); n != 1 {
				t.Errorf("%d audit events for one attempt", n)
			}
		})
	}
}

// A client that seals for a server without a key is told so, and not that its token is
// wrong.
func TestSealedForServerWithoutKey(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP, carrier.ModeAuto} {
		for name, own := range map[string]*ecdh.PrivateKey{"token": nil, "key": newKey(t)} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				server, at := startServer(t, nil)
				err := refusedWith(t, at, both(sealing(newKey(t), own), func(c *ClientConfig) { c.Carrier = mode }))
				refused, ok := errors.AsType[*carrier.RefusedError](err)
				if !ok || refused.Token != carrier.RefusalSeal || errors.Is(err, carrier.ErrUnauthorized) || !carrier.Permanent(err) {
					t.Errorf("client ended with %v", err)
				}
				server.find(t, `msg="login refused"`)
			})
		}
	}
}

// A client that may listen at loopback only is told what it takes to listen elsewhere.
func TestListenBeyondLoopback(t *testing.T) {
	rule, err := auth.ParseRule("allow localhost:*")
	if err != nil {
		t.Fatal(err)
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{Anybody: &auth.Identity{Policy: auth.Policy{Listen: []auth.Rule{rule}}}})
	if err != nil {
		t.Fatal(err)
	}
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = auth.NewGuard(d) })
	err = refusedWith(t, at, func(c *ClientConfig) {
		c.Credential = nil
		c.Remote = []Forward{{Bind: "*", Port: 0, Target: "127.0.0.1:1"}}
	})
	if !errors.Is(err, ErrListen) || mux.CodeOf(err) != mux.Denied || !strings.Contains(err.Error(), "--gateway-ports") {
		t.Errorf("client ended with %v", err)
	}
}
