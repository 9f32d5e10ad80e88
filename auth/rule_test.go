package auth

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseRuleErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "does not begin with allow or deny",
		"10.0.0.0/8:22":                     "does not begin with allow or deny",
		"Allow *:*":                         "does not begin with allow or deny",
		"allow":                             "does not have one HOST:PORTS",
		"allow a:1 b:2":                     `"a:1" is not a network`,
		"allow icmp a:1":                    `"icmp" is not a network; write tcp, udp or nothing`,
		"allow tcp a:1 b:2":                 "does not have one HOST:PORTS",
		"allow 10.0.0.0/8":                  "is not HOST:PORTS",
		"allow 2001:db8::1:22":              "[2001:db8::/32]:443",
		"allow :22":                         "write * for every host",
		"allow 10.0.0.1/8:22":               "write 10.0.0.0/8, or the address alone",
		"allow 10.0.0.0/33:22":              "is not a network",
		"allow 10.0.0.0/x:22":               "is not a network",
		"allow 2130706433:22":               "write 127.0.0.1",
		"allow 010.0.0.1:22":                "write 8.0.0.1",
		"allow 10.0.0.1.:22":                "write 10.0.0.1",
		"allow 10.0.0.256:22":               "ends in a number and is no IPv4 address",
		"allow [fe80::1%eth0]:22":           "write fe80::1",
		"allow [fe80::%eth0/10]:22":         "is not a network",
		"allow a*.example:22":               "write *.name",
		"allow *.*.example:22":              "not *. and a name",
		"allow *.:22":                       "not *. and a name",
		"allow *.1.2.3.4:22":                "not *. and a name",
		"allow a.example:":                  "not a port",
		"allow a.example:ssh":               "not a port",
		"allow a.example:65536":             "not a port",
		"allow a.example:9-8":               "not a port",
		"allow a.example:1,,2":              "not a port",
		"allow a.example:-":                 "not a port",
		"allow a.example:1-2-3":             "not a port",
		"allow a.example:22\nallow *:*":     "does not have one HOST:PORTS",
		"allow " + strings.Repeat("x", 999): "is not HOST:PORTS",
	} {
		r, err := ParseRule(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 800 {
			t.Errorf("%q is %v, %v, want an error with %q", text, r, err, want)
		}
	}
}

// TestRules asks one rule, which allows, about dials.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		rule, host, addr string // host "": as addr
		want             bool
	}{
		{"allow 10.0.0.1:22", "", "10.0.0.1:22", true},
		{"allow 10.0.0.1:22", "", "110.0.0.1:22", false},
		{"allow 10.0.0.1:22", "", "10.0.0.1:2222", false},
		{"allow 10.0.0.1:22", "a.example", "10.0.0.1:22", true},
		{"allow tcp 10.0.0.1:22", "", "10.0.0.1:22", true},
		{"allow udp 10.0.0.1:22", "", "10.0.0.1:22", false},
		{"allow 10.0.0.0/8:22", "", "10.255.255.255:22", true},
		{"allow 10.0.0.0/8:22", "", "11.0.0.0:22", false},
		{"allow [::ffff:10.0.0.0/104]:22", "", "10.1.2.3:22", true},
		{"allow [::ffff:10.0.0.1]:22", "", "10.0.0.1:22", true},
		{"allow [2001:db8::/32]:443", "", "[2001:db8::1]:443", true},
		{"allow [2001:db8::/32]:443", "", "[2001:db8::1%eth0]:443", true},
		{"allow [2001:db8::/32]:443", "", "[2001:db9::1]:443", false},
		{"allow *:80,443,8000-8080", "", "10.0.0.1:80", true},
		{"allow *:80,443,8000-8080", "", "10.0.0.1:443", true},
		{"allow *:80,443,8000-8080", "", "10.0.0.1:8080", true},
		{"allow *:80,443,8000-8080", "", "10.0.0.1:8081", false},
		{"allow localhost:80", "", "127.0.0.1:80", true},
		{"allow localhost:80", "", "127.9.9.9:80", true},
		{"allow localhost:80", "", "[::1]:80", true},
		{"allow localhost:80", "localhost", "10.0.0.1:80", false},
		// IPv6 networks have no IPv4 addresses, and the other way round.
		{"allow 0.0.0.0/0:22", "", "[2001:db8::1]:22", false},
		{"allow [::/0]:22", "", "10.0.0.1:22", false},

		// Names.
		{"allow db.example:22", "db.example", "10.0.0.1:22", true},
		{"allow DB.example.:22", "Db.Example", "10.0.0.1:22", true},
		{"allow db.example:22", "db.example.", "10.0.0.1:22", true},
		{"allow db.example:22", "xdb.example", "10.0.0.1:22", false},
		{"allow db.example:22", "db.example.evil.test", "10.0.0.1:22", false},
		{"allow db.example:22", "", "10.0.0.1:22", false},
		{"allow *.example:22", "db.example", "10.0.0.1:22", true},
		{"allow *.example:22", "a.db.example", "10.0.0.1:22", true},
		{"allow *.example:22", "example", "10.0.0.1:22", false},
		{"allow *.example:22", "dbexample", "10.0.0.1:22", false},
		{"allow *.example:22", "db.example", "127.0.0.1:22", false},
		{"allow db.example:22", "db.example", "[::1]:22", false},
		{"allow db.example:22", "db.example", "169.254.169.254:22", false},
		{"allow db.localhost:22", "db.localhost", "127.0.0.1:22", true},
		{"allow *.localhost:22", "db.localhost", "[::1]:22", true},
		{"allow *:22", "db.example", "127.0.0.1:22", true},

		// What is special is to be named.
		{"allow *:*", "", "169.254.169.254:80", false},
		{"allow 0.0.0.0/0:*", "", "169.254.169.254:80", false},
		{"allow 169.0.0.0/8:*", "", "169.254.169.254:80", false},
		{"allow 169.254.0.0/15:*", "", "169.254.169.254:80", false},
		{"allow 169.254.0.0/16:*", "", "169.254.169.254:80", true},
		{"allow 169.254.169.254:80", "", "169.254.169.254:80", true},
		{"allow 169.254.169.254:80", "metadata.example", "169.254.169.254:80", true},
		{"allow 169.254.169.254:80", "", "[64:ff9b::a9fe:a9fe]:80", true},
		{"allow [::/0]:*", "", "[fe80::1]:80", false},
		{"allow [fe80::/9]:*", "", "[fe80::1]:80", false},
		{"allow [fe80::/64]:*", "", "[fe80::1%eth0]:80", true},
		{"allow 0.0.0.0/0:*", "", "0.0.0.0:80", false},
		{"allow 0.0.0.0:*", "", "0.0.0.0:80", true},
		{"allow 100.100.0.0/16:*", "", "100.100.100.200:80", false},
		{"allow 100.100.100.200:80", "", "100.100.100.200:80", true},
		{"allow 224.0.0.0/3:*", "", "255.255.255.255:80", false},
		{"allow [fd00:ec2::/32]:*", "", "[fd00:ec2::254]:80", false},
		{"allow [fd00:ec2::254]:80", "", "[fd00:ec2::254]:80", true},

		// The IPv4 address inside is what would be reached, or might be.
		{"allow 10.0.0.0/8:22", "", "[64:ff9b::10.0.0.5]:22", true},
		{"allow 10.0.0.0/8:22", "", "[64:ff9b:1::10.0.0.5]:22", false},
		{"allow 10.0.0.0/8:22", "", "[::ffff:0:10.0.0.5]:22", false},
		{"allow 10.0.0.0/8:22", "", "[2002:a00:1::bad]:22", false},
		{"allow 10.0.0.0/8:22", "", "[::10.0.0.5]:22", false},
		{"allow localhost:22", "", "[64:ff9b::127.0.0.1]:22", true},
		{"allow localhost:22", "", "[2002:7f00:1::]:22", false},
		{"allow [::/0]:22", "", "[64:ff9b::10.0.0.5]:22", false},
		{"allow [64::/16]:22", "", "[64:ff9b::10.0.0.5]:22", false},
		{"allow [64:ff9b::/95]:22", "", "[64:ff9b::10.0.0.5]:22", false},
		{"allow [2000::/3]:22", "", "[2002:a00:5::1]:22", false},
		{"allow [2002::/15]:22", "", "[2002:a00:5::1]:22", false},
		{"allow [2002::/16]:22", "", "[2002:a00:5::1]:22", true},
		{"allow [2002:a00:5::1]:22", "", "[2002:a00:5::1]:22", true},
		{"allow [64:ff9b:1::/48]:22", "", "[64:ff9b:1::10.0.0.5]:22", true},
		{"allow *:22", "", "[2002:a00:5::1]:22", true},
		{"allow [2002::/16]:80", "", "[2002:a9fe:a9fe::1]:80", false},
		{"allow [64:ff9b:1::/48]:80", "", "[64:ff9b:1::169.254.169.254]:80", false},
		{"allow [64:ff9b:1::/48]:80", "", "[64:ff9b:1:a9fe:a9:fe00::]:80", false},
		{"allow *:80", "", "[64:ff9b:1:a9fe:a9:fe00::]:80", false},
		{"allow *:80", "", "[64:ff9b:1:a9:fe:a9fe::]:80", false},
		{"allow *:80", "", "[64:ff9b:1:0:a9:fea9:fe00:0]:80", false},
		{"allow *:80", "", "[64:ff9b:1:6464:64:c800::]:80", false},
		{"allow *:80", "", "[64:ff9b:1:e0:a:5::]:80", true}, // 10.0.5.0 and no multicast
		{"allow *:80", "", "[64:ff9b:1:2::10.0.0.5]:80", true},
		{"allow a.example:80", "a.example", "[2002:7f00:1::]:80", false},
		{"allow [64:ff9b::/96]:22", "", "[64:ff9b::10.0.0.5]:22", true},
		{"allow [64:ff9b::/96]:22", "", "[64:ff9b::169.254.169.254]:22", false},
		{"allow a.example:22", "a.example", "[64:ff9b::127.0.0.1]:22", false},
	} {
		addr := netip.MustParseAddrPort(tt.addr)
		host := HostOf(addr.Addr())
		if tt.host != "" {
			var err error
			if host, err = ParseHost(tt.host); err != nil {
				t.Fatal(err)
			}
		}
		r, err := ParseRule(tt.rule)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := guardOf(t, Policy{Dial: []Rule{r}}).Explain(OpDial, "", TCP, host, addr); got.Allowed != tt.want {
			t.Errorf("%s: %s at %s: %+v, want %v", tt.rule, host, addr, got, tt.want)
		}
	}
}

// TestDenies asks about dials that a rule denies and the next one, which names what
// is asked for, would allow.
func TestDenies(t *testing.T) {
	for _, tt := range []struct {
		rule, host, addr string
		denied           bool
	}{
		{"deny 10.0.0.0/8:*", "", "10.0.0.5:22", true},
		{"deny 10.0.0.0/8:*", "", "[64:ff9b::10.0.0.5]:22", true},
		{"deny 10.0.0.0/8:*", "", "[2002:a00:5::]:22", true},
		{"deny 10.0.0.0/8:*", "", "[::10.0.0.5]:22", true},
		{"deny 10.0.0.0/8:*", "", "[::ffff:0:10.0.0.5]:22", true},
		{"deny 10.0.0.0/8:*", "", "[64:ff9b:1::10.0.0.5]:22", true},
		{"deny 10.0.0.0/8:*", "", "[64:ff9b:1:a00:0:500::]:22", true},
		{"deny 10.0.0.0/8:*", "", "[64:ff9b:1:0:a:5::]:22", true},
		{"deny 10.0.0.0/8:*", "", "[64:ff9b:1::11.0.0.5]:22", false},
		{"deny [2002::/16]:*", "", "[2002:a00:5::]:22", true},
		{"deny localhost:*", "", "[2002:7f00:1::]:22", true},
		{"deny [::ffff:10.0.0.0/104]:*", "", "10.0.0.5:22", true},
		{"deny [64:ff9b::/96]:*", "", "[64:ff9b::10.0.0.5]:22", true},
		{"deny [::/0]:*", "", "[64:ff9b::10.0.0.5]:22", true},
		{"deny [64:ff9b::/96]:*", "", "10.0.0.5:22", false},
		{"deny *:22", "", "10.0.0.5:22", true},
		{"deny udp *:22", "", "10.0.0.5:22", false},
		{"deny localhost:*", "", "127.1.1.1:22", true},
		{"deny localhost:*", "a.example", "[::1]:22", true},
		{"deny 169.254.0.0/15:*", "", "169.254.169.254:80", true},
		{"deny a.example:*", "A.EXAMPLE.", "10.0.0.5:22", true},
		{"deny a.example:*", "a.example", "127.0.0.1:22", true},
		// A name does not deny its address.
		{"deny a.example:*", "", "10.0.0.5:22", false},
	} {
		addr := netip.MustParseAddrPort(tt.addr)
		host := HostOf(addr.Addr())
		if tt.host != "" {
			host, _ = ParseHost(tt.host)
		}
		g := guardOf(t, Policy{Dial: []Rule{mustParse(tt.rule), Exactly(host, addr.Port())}})
		if got := g.Explain(OpDial, "", TCP, host, addr); got.Allowed == tt.denied || got.Rule == 0 != tt.denied {
			t.Errorf("%s: %s at %s: %+v, want denied: %v", tt.rule, host, addr, got, tt.denied)
		}
	}
}

func TestListenRules(t *testing.T) {
	for _, tt := range []struct {
		rules, host, addr string
		want              bool
	}{
		{"allow localhost:8000-8999", "localhost", "127.0.0.1:8080", true},
		{"allow localhost:8000-8999", "", "[::1]:8080", true},
		{"allow localhost:8000-8999", "", "127.0.0.1:9000", false},
		{"allow localhost:8000-8999", "", "127.0.0.1:0", false},
		{"allow localhost:8000-8999", "", "0.0.0.0:8080", false},
		{"allow localhost:8000-8999", "", "[::]:8080", false},
		{"allow localhost:8000-8999", "", "[64:ff9b::127.0.0.1]:8080", false},
		{"allow localhost:*", "", "127.0.0.1:0", true},
		{"allow localhost:0", "", "127.0.0.1:0", true},
		{"allow gate.example:80", "gate.example", "192.0.2.1:80", true},
		{"allow gate.example:80", "", "192.0.2.1:80", false},
		{"allow 192.0.2.1:80", "", "192.0.2.1:80", true},
		{"allow 192.0.2.1:80", "", "0.0.0.0:80", false},
		{"allow 192.0.2.0/24:80", "", "[::]:80", false},
		{"allow *:80", "", "[::]:80", true},
		{"allow *:80", "", "0.0.0.0:80", true},
		{"allow 0.0.0.0/0:80", "", "0.0.0.0:80", true},
		{"allow 0.0.0.0:80", "", "0.0.0.0:80", true},
		{"allow 0.0.0.0:80", "", "192.0.2.1:80", false},
		{"allow 0.0.0.0/1:80", "", "0.0.0.0:80", false},                // half of them
		{"allow gate.example:80", "gate.example", "0.0.0.0:80", false}, // whoever owns the name
		{"allow *.example:80", "gate.example", "[::]:80", false},
		{"allow 0.0.0.0/0:80", "", "[::]:80", false},
		{"allow [::/0]:80", "", "[::]:80", false}, // which is IPv4 too
		{"allow [::]:80", "", "[::]:80", true},
		{"allow [::/0]:80", "", "[2001:db8::1]:80", true},
		{"allow *:80", "", "224.0.0.1:80", false},
		{"allow *:80", "", "[fe80::1%eth0]:80", true},

		// To listen everywhere is to listen at what is denied.
		{"deny 192.0.2.1:80; allow *:*", "", "0.0.0.0:80", false},
		{"deny 192.0.2.1:80; allow *:*", "", "[::]:80", false},
		{"deny 192.0.2.1:80; allow *:*", "", "[::]:81", true},
		{"deny [2001:db8::1]:80; allow *:*", "", "0.0.0.0:80", true},
		{"deny [2001:db8::1]:80; allow *:*", "", "[::]:80", false},
		{"deny localhost:80; allow *:*", "", "0.0.0.0:80", false},
		{"deny localhost:80; allow *:*", "", "192.0.2.1:80", true},
	} {
		addr := netip.MustParseAddrPort(tt.addr)
		host := HostOf(addr.Addr())
		if tt.host != "" {
			host, _ = ParseHost(tt.host)
		}
		var policy Policy
		for rule := range strings.SplitSeq(tt.rules, ";") {
			policy.Listen = append(policy.Listen, mustParse(rule))
		}
		if got := guardOf(t, policy).Explain(OpListen, "", TCP, host, addr); got.Allowed != tt.want {
			t.Errorf("%s: %s at %s: %+v, want %v", tt.rules, host, addr, got, tt.want)
		}
	}
}

// What the owner of a machine asked for is not questioned, and is all there is.
func TestExactly(t *testing.T) {
	for _, tt := range []struct {
		host, addr string
		want       bool
	}{
		{"169.254.169.254", "169.254.169.254:80", true},
		{"169.254.169.254", "169.254.169.254:81", false},
		{"169.254.169.254", "169.254.169.253:80", false},
		{"2852039166", "169.254.169.254:80", true},
		{"64:ff9b::a00:5", "[64:ff9b::a00:5]:80", true},
		{"metadata.example", "169.254.169.254:80", true},
		{"metadata.example", "127.0.0.1:80", true},
		{"localhost", "127.0.0.1:80", true},
		{"localhost", "10.0.0.1:80", true},
	} {
		host, err := ParseHost(tt.host)
		if err != nil {
			t.Fatal(err)
		}
		g := guardOf(t, Policy{Dial: []Rule{Exactly(host, 80)}})
		g.Protect(func(string, netip.AddrPort) bool { return true })
		addr := netip.MustParseAddrPort(tt.addr)
		if got := g.Explain(OpDial, "", TCP, host, addr); got.Allowed != tt.want {
			t.Errorf("%s at %s: %+v, want %v", tt.host, tt.addr, got, tt.want)
		}
		other, _ := ParseHost("other.example")
		if got := g.Explain(OpDial, "", TCP, other, netip.MustParseAddrPort("203.0.113.1:80")); got.Allowed {
			t.Errorf("%s: another host: %+v", tt.host, got)
		}
	}
}

// The server's own listeners are named by address and port.
func TestOwn(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:8443")
	for rule, want := range map[string]bool{
		"allow *:*": false, "allow *:8443": false, "allow localhost:*": false, "allow 127.0.0.1:*": false,
		"allow 127.0.0.0/8:8443": false, "allow 127.0.0.1:8000-9000": false, "allow 127.0.0.1:8000-9000,8443": true,
		"allow 127.0.0.1:8443": true, "allow localhost:8443": true,
	} {
		g := guardOf(t, Policy{Dial: []Rule{mustParse(rule)}})
		g.Protect(func(string, netip.AddrPort) bool { return false })
		g.Protect(func(op string, a netip.AddrPort) bool { return op == OpDial && a == addr })
		for _, spelling := range []string{"127.0.0.1:8443", "[::ffff:127.0.0.1]:8443", "[64:ff9b::127.0.0.1]:8443"} {
			a := netip.MustParseAddrPort(spelling)
			if got := g.Explain(OpDial, "", TCP, HostOf(a.Addr()), a); got.Allowed != want {
				t.Errorf("%s: %s: %+v, want %v", rule, spelling, got, want)
			}
		}
		six := netip.MustParseAddrPort("[2002:7f00:1::]:8443")
		if got := g.Explain(OpDial, "", TCP, HostOf(six.Addr()), six); got.Allowed {
			t.Errorf("%s: %s: %+v", rule, six, got)
		}
	}
}

// Nobody listens on a port of the server's own, at whichever address, unless a rule names
// the port.
func TestOwnPort(t *testing.T) {
	const port = 8443
	for _, tt := range []struct {
		rule, addr string
		want       bool
	}{
		{"allow localhost:*", "[::1]:8443", false},
		{"allow localhost:*", "127.0.0.1:8443", false},
		{"allow localhost:*", "[::ffff:127.0.0.1]:8443", false},
		{"allow localhost:*", "[::1]:8444", true},
		{"allow localhost:*", "[::1]:0", true},
		{"allow localhost:8000-8999", "[::1]:8443", false},
		{"allow localhost:0", "[::1]:8443", false},
		{"allow [::1]:*", "[::1]:8443", false},
		{"allow *:*", "192.0.2.1:8443", false},
		{"allow *:*", "[::]:8443", false},
		{"allow *:*", "0.0.0.0:8443", false},
		{"allow localhost:8443", "[::1]:8443", true},
		{"allow localhost:8000-8099,8443", "[::1]:8443", true},
		{"allow *:8443", "[::]:8443", true},
		{"allow 192.0.2.0/24:8443", "192.0.2.1:8443", true},
		{"allow localhost:8443", "192.0.2.1:8443", false},
	} {
		g := guardOf(t, Policy{Listen: []Rule{mustParse(tt.rule)}})
		g.Protect(func(op string, a netip.AddrPort) bool { return op == OpListen && a.Port() == port })
		addr := netip.MustParseAddrPort(tt.addr)
		grant, err := g.Listen("", TCP, HostOf(addr.Addr()), addr)
		if (err == nil) != tt.want {
			t.Errorf("%s: %s: %v, want allowed: %v", tt.rule, addr, err, tt.want)
		}
		var denied *DeniedError
		if err != nil && (!errors.As(err, &denied) || !denied.Own || denied.Rule != "a port of the server's own, which no rule names") {
			t.Errorf("%s: %s: %#v", tt.rule, addr, err)
		}
		if err == nil && addr.Port() == 0 { // and the system chooses it
			if err := grant.Bound(netip.AddrPortFrom(addr.Addr(), port)); !errors.Is(err, ErrDenied) {
				t.Errorf("the system's choice of the port: %v", err)
			}
		}
	}
	// What a rule denies is that rule's.
	g := guardOf(t, Policy{Listen: []Rule{mustParse("deny *:8443"), mustParse("allow *:*")}})
	g.Protect(func(op string, _ netip.AddrPort) bool { return op == OpListen })
	var denied *DeniedError
	if _, err := g.Listen("", TCP, HostOf(netip.IPv6Loopback()), netip.AddrPortFrom(netip.IPv6Loopback(), port)); !errors.As(err, &denied) || denied.Own || denied.Rule != "deny *:8443" {
		t.Errorf("%#v", denied)
	}
}

func TestExplain(t *testing.T) {
	d, err := NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "alice", Policy: Policy{
		Dial: []Rule{mustParse("deny  10.0.0.5:*"), mustParse("allow 10.0.0.0/8:22"), mustParse("allow db.example:22")},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	g := NewGuard(d)
	db, _ := ParseHost("db.example")
	for _, tt := range []struct {
		identity string
		host     Host
		addr     string
		want     Verdict
	}{
		{"alice", Host{}, "10.0.0.5:22", Verdict{false, 0, "deny 10.0.0.5:*"}},
		{"alice", Host{}, "10.0.0.6:22", Verdict{true, 1, "allow 10.0.0.0/8:22"}},
		{"alice/somebody", Host{}, "10.0.0.6:22", Verdict{true, 1, "allow 10.0.0.0/8:22"}},
		{"alice", Host{}, "10.0.0.6:23", Verdict{false, -1, "no rule allows it"}},
		{"alice", db, "192.0.2.1:22", Verdict{true, 2, "allow db.example:22"}},
		{"alice", db, "127.0.0.1:22", Verdict{false, -1, "a name that leads to loopback, which no rule names"}},
		{"alice", Host{}, "169.254.169.254:80", Verdict{false, -1, "a link-local address, which no rule names"}},
		{"bob", Host{}, "10.0.0.6:22", Verdict{false, -1, "no such identity"}},
		{"", Host{}, "10.0.0.6:22", Verdict{false, -1, "no such identity"}},
	} {
		addr := netip.MustParseAddrPort(tt.addr)
		if got := g.Explain(OpDial, tt.identity, TCP, tt.host, addr); got != tt.want {
			t.Errorf("%s at %s: %+v, want %+v", tt.identity, tt.addr, got, tt.want)
		}
		// What is explained is what is done.
		grant, err := g.Dial(tt.identity, TCP, tt.host, addr)
		if (err == nil) != tt.want.Allowed {
			t.Errorf("%s at %s: granted %v, %v", tt.identity, tt.addr, grant, err)
		}
		if err == nil && grant.Rule() != tt.want.Why {
			t.Errorf("%s at %s: granted by %q", tt.identity, tt.addr, grant.Rule())
		}
	}
}

// guardOf lets everybody in, with one policy.
func guardOf(t testing.TB, p Policy) *Guard {
	t.Helper()
	d, err := NewDirectory(DirectoryConfig{Anybody: &Identity{Policy: p}})
	if err != nil {
		t.Fatal(err)
	}
	return NewGuard(d)
}

// FuzzParseRule checks that a rule written again is the same rule, and that none
// that allows reaches a special address by accident.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{
		"allow *:*", "deny tcp 10.0.0.0/8:22,80-90", "allow [2001:db8::/32]:443", "allow *.corp.example:*",
		"allow localhost:8000-8999", "allow [::ffff:10.0.0.0/104]:1", "deny udp a.example:0", "allow 169.254.0.0/15:80",
	} {
		f.Add(s)
	}
	metadata := netip.MustParseAddrPort("169.254.169.254:80")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: not one line: %v", text, err)
			}
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%q is %+v, and written again %+v, %v", text, r, again, err)
		}
		name := strings.TrimPrefix(r.hosts.name+r.hosts.under, ".")
		q := newQuestion(OpDial, TCP, name, metadata)
		if (Policy{Dial: []Rule{r}}).judge(q).Allowed && !q.special.network.Contains(r.hosts.prefix.Addr()) {
			t.Errorf("%q reaches %s", text, metadata)
		}
		for _, op := range []string{OpDial, OpListen} {
			(Policy{Dial: []Rule{r}, Listen: []Rule{r}}).judge(newQuestion(op, UDP, name, netip.AddrPort{}))
		}
	})
}
