package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert/auth"
	"culvert/tunnel"
)

// The codes of answers and resets (mux/PROTOCOL.md).
const (
	codeUnresolvable = 4
	codeDenied       = 5
	codeNotFound     = 7
)

func policy(t testing.TB, dial, listen string) auth.Policy {
	t.Helper()
	var p auth.Policy
	for _, list := range []struct {
		text  string
		rules *[]auth.Rule
	}{{dial, &p.Dial}, {listen, &p.Listen}} {
		for text := range strings.SplitSeq(list.text, ";") {
			if text == "" {
				continue
			}
			r, err := auth.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			*list.rules = append(*list.rules, r)
		}
	}
	return p
}

// aliceMay is a directory with alice, who may do this, and bob, who may do what is
// not denied to all.
func aliceMay(t testing.TB, dial, listen string) *auth.Directory {
	t.Helper()
	all := people()
	all[0].Policy = policy(t, dial, listen)
	return newDirectory(t, all...)
}

func startGuarded(t testing.TB, d *auth.Directory, edit func(*tunnel.ServerConfig)) (addr string, guard *auth.Guard) {
	t.Helper()
	guard = auth.NewGuard(d)
	addr, _ = startServer(t, func(c *tunnel.ServerConfig) {
		c.Guard = guard
		if edit != nil {
			edit(c)
		}
	})
	return addr, guard
}

// metadata is 169.254.169.254 in every spelling.
var metadata = []string{
	"169.254.169.254", "169.254.169.254.", "2852039166", "2852039166.", "0xa9fea9fe", "0XA9FEA9FE", "0xA9FEA9FE.",
	"025177524776", "0251.0376.0251.0376", "0251.0376.0251.0376.", "000251.0376.0251.0376", "0xa9.0xfe.0xa9.0xfe",
	"0XA9.254.0251.0xfe", "169.254.43518", "169.16689662", "169.0xfea9fe", "0xa9.0376.43518",
	"[::ffff:169.254.169.254]", "[::FFFF:A9FE:A9FE]", "[0:0:0:0:0:ffff:169.254.169.254]", "[0000:0000:0000:0000:0000:FFFF:A9FE:A9FE]",
	"[64:ff9b::169.254.169.254]", "[64:FF9B::A9FE:A9FE]",
}

// metadataInside are IPv6 addresses that may lead to 169.254.169.254. They are denied with it, and
// not allowed with it: that takes a rule of their own.
var metadataInside = []string{
	"[::169.254.169.254]", "[64:ff9b:1::a9fe:a9fe]", "[::ffff:0:169.254.169.254]", "[2002:a9fe:a9fe::]", "[2002:a9fe:a9fe::1]",
}

// loopback is ::1 in every spelling, and loopback4 127.0.0.1.
var (
	loopback = []string{
		"[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[0::1]", "[::0:1]", "[::0.0.0.1]", "[::1%lo]", "[::1%1]",
	}
	loopback4 = []string{
		"127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.1.", "2130706433", "0x7f000001", "0X7F.1", "0x7f.0x0.0x0.0x1",
		"017700000001", "0177.0.0.1", "0177.0.0.01", "[::ffff:127.0.0.1]", "[::FFFF:7F00:1]", "[0:0:0:0:0:ffff:7f00:0001]",
		"localhost", "LOCALHOST", "Localhost.",
	}
)

// malformed are spellings that nothing has.
var malformed = []string{
	"[::1.]", "169.254.169.254..", "169.254.169.0xfffe", "169.254.169.254.0", "4294967296", "0300.0400.0.0", "08.0.0.1", "0x.1", "127.0.0.1 ", " 127.0.0.1",
	"127.0.0.1\x00.example", "127.0.0.1\n", "169。254。169。254", "１２７.0.0.1", "[::ffff:0x7f.1]", "127.0.0.1/8", "", ".", "a..b", "*",
}

// What is denied is denied however it is spelt, and so is what is allowed allowed.
func TestSpellings(t *testing.T) {
	echo := startEcho(t)
	_, port, _ := net.SplitHostPort(echo)
	port6 := startEcho6(t)
	spellings := []struct {
		hosts      []string
		port       string
		rule       string
		unanswered bool // nobody listens there
	}{
		{metadata, "9", "169.254.169.254:9", true},
		{metadata, "9", "169.254.0.0/16:9", true},
		{loopback4, port, "localhost:*", false},
		{loopback4, port, "127.0.0.0/8:*", false},
		{loopback, port6, "localhost:*", false},
		{loopback, port6, "[::1]:*", false},
	}
	for _, tt := range spellings {
		t.Run(tt.rule, func(t *testing.T) {
			if tt.port == "" {
				t.Skip("there is no IPv6")
			}
			quick := func(c *tunnel.ServerConfig) {
				if tt.unanswered {
					c.DialTimeout = 50 * time.Millisecond
				}
			}
			allowing, _ := startGuarded(t, aliceMay(t, "deny *.example:*;allow "+tt.rule, ""), quick)
			denying, _ := startGuarded(t, aliceMay(t, "deny "+tt.rule+";allow *:*", ""), quick)
			yes, no := openSession(t, allowing, bearer(tokenOfAlice)), openSession(t, denying, bearer(tokenOfAlice))
			for _, host := range metadataInside {
				for what, s := range map[string]*session{"allowing": yes, "denying": no} {
					if _, code, reason := s.open(1, host+":9"); code != codeDenied && (tt.unanswered || s == yes) {
						t.Errorf("%s, %q: answered %d %q, want denied", what, host, code, reason)
					}
				}
			}
			for _, host := range tt.hosts {
				target := host + ":" + tt.port
				if strings.HasPrefix(strings.ToLower(host), "localhost") && tt.rule != "localhost:*" {
					continue // it has an IPv6 address as well
				}
				if _, code, reason := no.open(1, target); code != codeDenied {
					t.Errorf("%q: answered %d %q, want denied", target, code, reason)
				}
				_, code, reason := yes.open(1, target)
				if code != 0 && !tt.unanswered || code == codeDenied || code == codeUnresolvable {
					t.Errorf("%q: answered %d %q, want allowed", target, code, reason)
				}
			}
		})
	}
	t.Run("not named", func(t *testing.T) {
		server, _ := startServer(t, nil)
		s := openSession(t, server, bearer(tokenOfAlice))
		for _, host := range append(slices.Concat(metadata, metadataInside), "0.0.0.0", "0", "0x0", "[::]", "[::ffff:0.0.0.0]", "224.0.0.1", "[ff02::1]", "255.255.255.255",
			"[fe80::1]", "[fe80::1%lo]", "[FE80::A9FE:A9FE%1]", "[fd00:ec2::254]", "[FD00:0EC2:0:0:0:0:0:0254]", "100.100.100.200", "0x646464c8", "1684301000") {
			if _, code, reason := s.open(1, host+":80"); code != codeDenied {
				t.Errorf("%q: answered %d %q, want denied", host, code, reason)
			}
		}
	})
	t.Run("malformed", func(t *testing.T) {
		server, _ := startGuarded(t, aliceMay(t, "allow *:*;allow 169.254.0.0/16:*", ""), func(c *tunnel.ServerConfig) {
			c.Lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
				t.Errorf("%q was looked up", name)
				return nil, errors.New("no such host")
			}
		})
		s := openSession(t, server, bearer(tokenOfAlice))
		for _, host := range malformed {
			if _, code, reason := s.open(1, host+":"+port); code != codeUnresolvable {
				t.Errorf("%q: answered %d %q, want unresolvable", host, code, reason)
			}
		}
		for _, target := range []string{"", "127.0.0.1", "::1:80", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:0x50", "127.0.0.1:+80", "127.0.0.1:http", "127.0.0.1:80:80", "http://127.0.0.1:80"} {
			if _, code, reason := s.open(1, target); code != codeUnresolvable {
				t.Errorf("%q: answered %d %q, want unresolvable", target, code, reason)
			}
		}
	})
}

// startEcho6 is startEcho on ::1; it returns the port, "" if there is no IPv6.
func startEcho6(t testing.TB) (port string) {
	t.Helper()
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Log(err)
		return ""
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// A name that leads somewhere else each time is looked up once for each stream, and
// what was looked up is judged and dialled.
func TestRebinding(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := inner.Accept()
			if err != nil {
				return
			}
			reached <- struct{}{}
			conn.Close()
		}
	}()
	defer func() { inner.Close(); <-done }()
	_, port, _ := net.SplitHostPort(inner.Addr().String())

	for _, tt := range []struct {
		name, rules string
		answers     []string // of the resolver, each with spaces between addresses
	}{
		{"by network", "allow 203.0.113.0/24:*", []string{"203.0.113.1", "127.0.0.1", "::1", "10.0.0.1"}},
		{"both at once", "allow 203.0.113.0/24:*", []string{"203.0.113.1 127.0.0.1", "127.0.0.1 203.0.113.1"}},
		{"by name", "allow rebind.example:*", []string{"203.0.113.1", "127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "64:ff9b::127.0.0.1"}},
		{"by wildcard", "allow *.example:*", []string{"203.0.113.1 127.0.0.1", "127.0.0.1", "::ffff:127.0.0.1", "fe80::1"}},
		{"private denied", "deny 127.0.0.0/8:*;deny 10.0.0.0/8:*;allow *:*", []string{"203.0.113.1", "127.0.0.1", "10.0.0.1", "64:ff9b::10.0.0.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var lookups atomic.Int32
			server, _ := startGuarded(t, aliceMay(t, tt.rules, ""), func(c *tunnel.ServerConfig) {
				c.DialTimeout = 50 * time.Millisecond // nobody answers outside
				c.Lookup = func(_ context.Context, name string) (addrs []netip.Addr, _ error) {
					if name != "rebind.example" {
						t.Errorf("%q was looked up", name)
					}
					for text := range strings.SplitSeq(tt.answers[int(lookups.Add(1)-1)%len(tt.answers)], " ") {
						addrs = append(addrs, netip.MustParseAddr(text))
					}
					return addrs, nil
				}
			})
			s := openSession(t, server, bearer(tokenOfAlice))
			for i, answer := range tt.answers {
				_, code, reason := s.open(1, "Rebind.EXAMPLE:"+port)
				outside := strings.Contains(answer, "203.0.113.1")
				if code == 0 || outside == (code == codeDenied) {
					t.Errorf("%s: answered %d %q", answer, code, reason)
				}
				if got := int(lookups.Load()); got != i+1 {
					t.Errorf("%d lookups for %d streams", got, i+1)
				}
			}
		})
	}
	select {
	case <-reached:
		t.Error("the inside was reached")
	default:
	}
}

// A login opens what its policy grants and nothing else, by whatever kind of stream.
func TestBeyondThePolicy(t *testing.T) {
	echo := startEcho(t)
	other := startEcho(t)
	server, _ := startGuarded(t, aliceMay(t, "allow "+echo, "allow localhost:40000-40099"), nil)
	s := openSession(t, server, bearer(tokenOfAlice))
	stream, code, reason := s.open(1, echo)
	if code != 0 {
		t.Fatalf("answered %d %q", code, reason)
	}
	for _, target := range []string{other, server, "localhost:" + other[strings.LastIndexByte(other, ':')+1:], "10.0.0.1:22", "[::1]:22"} {
		if _, code, reason := s.open(1, target); code != codeDenied || reason != "denied by policy" {
			t.Errorf("%s: answered %d %q", target, code, reason)
		}
	}
	// What a server says to a client is nothing that a client may say.
	for _, target := range []string{"1", "0", echo, other} {
		if _, code, reason := s.open(2, target); code != codeNotFound {
			t.Errorf("forward %s: answered %d %q", target, code, reason)
		}
	}
	for _, bind := range []string{
		"127.0.0.1:0", "127.0.0.1:39999", "localhost:40100", "0.0.0.0:40000", "[::]:40000", "*:40000", ":40000", "0:40000", "0x0.0:40000",
		"[::ffff:0.0.0.0]:40000", "192.0.2.1:40000", "224.0.0.1:40000", "[64:ff9b::127.0.0.1]:40000",
	} {
		if addr, code, reason := s.listen(uint32(len(bind)), bind); code != codeDenied {
			t.Errorf("%s: listening at %s, %d %q", bind, addr, code, reason)
		}
	}
	for _, bind := range []string{"", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "1.2.3.4.5:40000", "127.0.0.1 :40000"} {
		if addr, code, reason := s.listen(9, bind); code != codeUnresolvable {
			t.Errorf("%q: listening at %s, %d %q", bind, addr, code, reason)
		}
	}
	s.echo(stream, "still here")

	// Another's policy is another's: what bob may, alice may not, and the other way.
	if _, code, _ := openSession(t, server, bearer(tokenOfBob)).open(1, other); code != 0 {
		t.Error("bob is denied what he may")
	}
}

// Nothing is opened before the login, whatever is sent after the request.
func TestStreamsWithoutALogin(t *testing.T) {
	echo := startEcho(t)
	server, log := startServer(t, nil)
	c := dialRaw(t, server, "")
	header := append([]byte{1, 0, byte(len(echo))}, echo...)
	frame := append([]byte{2, framePSH, byte(len(header)), 0, 5, 0, 0, 0}, header...)
	message := sealed(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, frame...))
	early := string(append([]byte{0x82, 0x80 | byte(len(message)), 0, 0, 0, 0}, message...))
	resp, _ := c.ask(upgrade(hello(sessionID(), false, 0)) + early)
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("answered %s", resp.Status)
	}
	if strings.Contains(log.String(), "session opened") {
		t.Error("there is a session")
	}
}

// No stream leads back into the server.
func TestOwnListener(t *testing.T) {
	server, _ := startGuarded(t, aliceMay(t, "allow *:*", ""), func(c *tunnel.ServerConfig) { c.Listen = "0.0.0.0:0" })
	_, port, _ := net.SplitHostPort(server)
	server = net.JoinHostPort("127.0.0.1", port)
	s := openSession(t, server, bearer(tokenOfAlice))
	hosts := append([]string{"127.0.0.9", "[64:ff9b::127.0.0.1]"}, loopback4...)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := netip.MustParsePrefix(a.String()).Addr()
		if ip.Is4() {
			hosts = append(hosts, ip.String(), fmt.Sprintf("[::ffff:%s]", ip))
		}
	}
	for _, host := range hosts {
		if _, code, reason := s.open(1, host+":"+port); code != codeDenied {
			t.Errorf("%s: answered %d %q", host, code, reason)
		}
	}
	named, guard := startGuarded(t, aliceMay(t, "allow *:*", ""), nil)
	guard.Use(aliceMay(t, "allow "+named, ""))
	if _, code, reason := openSession(t, named, bearer(tokenOfAlice)).open(1, named); code != 0 {
		t.Errorf("named: answered %d %q", code, reason)
	}
}

// What is no longer granted ends within a second, and nothing else does.
func TestRevocation(t *testing.T) {
	kept, lost := startEcho(t), startEcho(t)
	server, guard := startGuarded(t, aliceMay(t, "allow *:*", "allow localhost:*"), nil)
	s, bob := openSession(t, server, bearer(tokenOfAlice)), openSession(t, server, bearer(tokenOfBob))
	stays, _, _ := s.open(1, kept)
	goes, _, _ := s.open(1, lost)
	of, _, _ := bob.open(1, lost)
	s.echo(stays, "one")
	s.echo(goes, "two")
	bob.echo(of, "three")
	addr, code, reason := s.listen(1, "127.0.0.1:0")
	if code != 0 {
		t.Fatalf("answered %d %q", code, reason)
	}
	visitor, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer visitor.Close()
	came := s.accepted()
	s.send(framePSH, came, []byte("hello")) // when that arrives, the open is over
	visitor.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(visitor, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	guard.Use(aliceMay(t, "allow "+kept, ""))
	if codes := s.resets(2); codes[goes] != codeDenied || codes[came] != codeDenied {
		t.Errorf("streams %d and %d of %v are to be reset with %d", goes, came, codes, codeDenied)
	}
	if _, err := visitor.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("who came in through the listener reads %v, want a reset", err)
	}
	wantClosed(t, addr)
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	s.echo(stays, "four")
	bob.echo(of, "five")
	if _, code, _ := s.open(1, lost); code != codeDenied {
		t.Errorf("answered %d", code)
	}
	if _, code, _ := s.listen(2, addr); code != codeDenied {
		t.Errorf("answered %d", code)
	}
	if addr, code, reason := bob.listen(1, addr); code != 0 {
		t.Errorf("the port is not free: %s, %d %q", addr, code, reason)
	}
}

// A removed identity has no session any more, with a carrier or without.
func TestRemovedIdentity(t *testing.T) {
	echo := startEcho(t)
	server, guard := startGuarded(t, newDirectory(t, people()...), nil)
	attached, detached := openSession(t, server, bearer(tokenOfAlice)), openSession(t, server, bearer(tokenOfAlice))
	bob := openSession(t, server, bearer(tokenOfBob))
	of, _, _ := bob.open(1, echo)
	held := make(chan error, 1)
	addr, _, _ := detached.listen(1, "127.0.0.1:0")
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if _, code, _ := detached.open(1, target.Addr().String()); code != 0 {
		t.Fatalf("answered %d", code)
	}
	conn, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	detached.Close() // the target hears nothing of that
	go func() {
		_, err := conn.Read(make([]byte, 1))
		held <- err
	}()

	began := time.Now()
	used := make(chan struct{})
	go func() {
		guard.Use(newDirectory(t, people()[1]))
		close(used) // a client may take a second to hang up
	}()
	if err := attached.ended(); !strings.Contains(err.Error(), "identity removed") {
		t.Errorf("the session ends with %v, want to be told why", err)
	}
	if err := <-held; errors.Is(err, io.EOF) {
		t.Error("the target reads an end of file, want a reset")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	<-used
	wantClosed(t, addr)
	refused(t, server, http.StatusUnauthorized, upgrade(hello(detached.id, true, 0), bearer(tokenOfAlice)))
	bob.echo(of, "still here")

	guard.Use(newDirectory(t, people()...))
	refused(t, server, http.StatusGone, upgrade(hello(detached.id, true, 0), bearer(tokenOfAlice)))
	if _, code, _ := openSession(t, server, bearer(tokenOfAlice)).open(1, echo); code != 0 {
		t.Errorf("alice is back and answered %d", code)
	}
}

// wantClosed waits until nobody listens at addr.
func wantClosed(t *testing.T, addr string) {
	t.Helper()
	for began := time.Now(); ; {
		c, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			io.Copy(io.Discard, c) // it is reset with the listener
			c.Close()
		}
		if time.Since(began) > patience {
			t.Fatal("the listener is open")
		}
	}
}

// accepted waits for a stream that the server opens, and accepts it.
func (s *session) accepted() (stream uint32) {
	s.t.Helper()
	for {
		f, err := s.receive()
		if err != nil {
			s.t.Fatal(err)
		}
		if f.command == framePSH && f.stream != controlStream && f.stream%2 == 0 {
			s.send(framePSH, f.stream, []byte{0})
			return f.stream
		}
	}
}

// resets waits until n streams were reset, and returns the codes.
func (s *session) resets(n int) map[uint32]byte {
	s.t.Helper()
	codes := make(map[uint32]byte)
	for len(codes) < n {
		f, err := s.receive()
		if err != nil {
			s.t.Fatal(err)
		}
		if f.stream != controlStream || f.command != framePSH {
			continue
		}
		for b := f.payload; len(b) >= 3; { // several records come in one frame
			body := b[3 : 3+int(binary.BigEndian.Uint16(b[1:]))]
			if b[0] == recordReset {
				codes[binary.BigEndian.Uint32(body)] = body[4]
			}
			b = b[3+len(body):]
		}
	}
	return codes
}
