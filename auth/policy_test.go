package auth

import (
	"errors"
	"net/netip"
	"testing"
)

func TestEverythingDial(t *testing.T) {
	tests := []struct {
		addr    string
		allowed bool
	}{
		{"10.0.0.5", true},
		{"127.0.0.1", true},
		{"::1", true},
		{"::ffff:10.0.0.5", true},
		{"93.184.216.34", true},
		{"2001:db8::1", true},
		{"fd00:ec2::253", true},
		{"100.100.100.201", true},
		{"64:ff9b::10.0.0.5", true},
		{"2002:a00:5::1", true},
		{"::10.0.0.5", true},
		{"64:ff9c::169.254.169.254", true}, // merely looks like NAT64

		{"169.254.169.254", false},
		{"169.254.0.0", false},
		{"169.254.255.255", false},
		{"::ffff:169.254.169.254", false},
		{"::169.254.169.254", false},
		{"64:ff9b::169.254.169.254", false},
		{"2002:a9fe:a9fe::1", false},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"febf::1", false},
		{"fd00:ec2::254", false},
		{"fd00:ec2::254%eth0", false},
		{"100.100.100.200", false},
		{"::ffff:100.100.100.200", false},
		{"0.0.0.0", false},
		{"::", false},
		{"::%eth0", false},
		{"::ffff:0.0.0.0", false},
		{"224.0.0.1", false},
		{"239.255.255.255", false},
		{"::ffff:224.0.0.1", false},
		{"ff02::1", false},
		{"ff0e::1", false},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			addr := netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 80)
			checkVerdict(t, Everything(), OpDial, addr, tt.allowed)
		})
	}
	checkVerdict(t, Everything(), OpDial, netip.AddrPort{}, false)
}

func TestEverythingListen(t *testing.T) {
	tests := []struct {
		addr             string
		closed, gateways bool // allowed without and with GatewayPorts
	}{
		{"127.0.0.1", true, true},
		{"127.8.9.10", true, true},
		{"::1", true, true},
		{"::ffff:127.0.0.1", true, true},
		{"0.0.0.0", false, true},
		{"::", false, true},
		{"::ffff:0.0.0.0", false, true},
		{"192.168.1.10", false, true},
		{"fe80::1%eth0", false, true},
		{"224.0.0.1", false, false},
		{"ff02::1", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			addr := netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 0)
			checkVerdict(t, Everything(), OpListen, addr, tt.closed)
			checkVerdict(t, Policy{Listen: []Rule{mustParse("allow *:*")}}, OpListen, addr, tt.gateways)
		})
	}
	checkVerdict(t, Policy{Listen: []Rule{mustParse("allow *:*")}}, OpListen, netip.AddrPort{}, false)
}

func checkVerdict(t *testing.T, p Policy, op string, addr netip.AddrPort, allowed bool) {
	t.Helper()
	d, err := NewDirectory(DirectoryConfig{Anybody: &Identity{Policy: p}})
	if err != nil {
		t.Fatal(err)
	}
	ask := NewGuard(d).Dial
	if op == OpListen {
		ask = NewGuard(d).Listen
	}
	_, err = ask("", TCP, HostOf(addr.Addr()), addr)
	switch {
	case allowed && err != nil:
		t.Errorf("denied: %v", err)
	case !allowed && err == nil:
		t.Error("allowed")
	case !allowed && !errors.Is(err, ErrDenied):
		t.Errorf("error %v does not match ErrDenied", err)
	}
}

// FuzzDialAddr checks that the verdict is one of the address, not of its
// spelling, and that no form of a denied IPv4 address gets through.
func FuzzDialAddr(f *testing.F) {
	for _, s := range []string{"169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "10.0.0.1", "::", "fd00:ec2::254"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return
		}
		ask := func(ip netip.Addr) bool {
			return Everything().judge(newQuestion(OpDial, TCP, "", netip.AddrPortFrom(ip, 80))).Allowed
		}
		if got, want := ask(ip), ask(ip.Unmap().WithZone("")); got != want {
			t.Errorf("%s: allowed is %v, and %v without its disguise", ip, got, want)
		}
		if ip := ip.Unmap(); ip.Is4() {
			b := ip.As4()
			nat64 := netip.AddrFrom16([16]byte{1: 0x64, 2: 0xff, 3: 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]})
			if ask(nat64) != ask(ip) {
				t.Errorf("%s and %s are judged differently", nat64, ip)
			}
		}
	})
}
