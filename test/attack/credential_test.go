package attack

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/tunnel"
)

// What is not the credential, in the one place where it belongs, is none.
func TestNoCredential(t *testing.T) {
	password, err := auth.ParsePassword(auth.HashPassword("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	alice := people()[0]
	alice.Passwords = []auth.Password{password}
	alice.Tokens = append(alice.Tokens, auth.Token{Sum: token("expired-0123456789abcdef").Sum, Expires: time.Now().Add(-time.Second)})
	start := func() (string, *journal) {
		return startServer(t, func(c *tunnel.ServerConfig) { c.Guard = auth.NewGuard(newDirectory(t, alice)) })
	}
	encode := base64.StdEncoding.EncodeToString
	good := bearer(tokenOfAlice)
	for _, lines := range [][]string{
		nil,
		{"Authorization:"},
		{"Authorization: Bearer"},
		{"Authorization: Bearer "},
		{"Authorization: " + tokenOfAlice},
		{"Authorization: Token " + tokenOfAlice},
		{"Authorization: Bearer " + tokenOfAlice + ", Basic x"},
		{"Authorization: Bearer \"" + tokenOfAlice + "\""},
		{bearer(tokenOfAlice[1:])},
		{bearer(strings.ToUpper(tokenOfAlice))},
		{bearer(tokenOfBob)},
		{bearer(token(tokenOfAlice).Hash())},
		{bearer("expired-0123456789abcdef")},
		{bearer("open sesame")},
		{good, good},
		{good, bearer("wrong")},
		{"Proxy-" + good},
		{"Cookie: " + good, "X-" + good},
		{"Sec-WebSocket-Protocol: " + tokenOfAlice},
		{basic("alice", "")},
		{basic("alice", "open sesam")},
		{basic("alice", "open sesame ")},
		{basic("Alice", "open sesame")},
		{basic("bob", "open sesame")},
		{basic("", "open sesame")},
		{basic("alice", tokenOfAlice)},
		{basic(tokenOfAlice, "")},
		{"Authorization: Basic " + encode([]byte("alice"))},
		{"Authorization: Basic " + encode([]byte("alice:open sesame\x00"))},
		{"Authorization: Basic " + strings.TrimRight(encode([]byte("alice:open sesame")), "=") + "!"},
		{"Authorization: Bearer " + encode([]byte("alice:open sesame"))},
		{"Authorization: Basic alice:open sesame"},
	} {
		server, log := start() // which has not seen this address fail
		resp, body := dialRaw(t, server, "").ask(upgrade(hello(sessionID(), false, 0), lines...))
		if resp.StatusCode != http.StatusUnauthorized || body != "Unauthorized\n" {
			t.Errorf("%q: answered %s, %q", lines, resp.Status, body)
		}
		if strings.Contains(log.String(), tokenOfAlice) || strings.Contains(log.String(), "sesam") {
			t.Error("a credential is in the log")
		}
	}
	server, log := start()
	for _, line := range []string{good, "authorization: bearer   " + tokenOfAlice, basic("alice", "open sesame")} {
		openSession(t, server, line)
	}
	if strings.Contains(log.String(), tokenOfAlice) || strings.Contains(log.String(), "sesame") {
		t.Error("a credential is in the log")
	}
}

// A request that was recorded and is sent again, byte for byte, does what the protocol
// says of a client that repeats its first request: it takes the place of the carrier, as
// long as the client has acknowledged nothing. Whoever could record it has the token in it
// and needs no such trick, which is why it travels in TLS only; still it gets nothing that
// the client has had, loses no byte of the client's, and cannot keep it out.
func TestReplayedUpgrade(t *testing.T) {
	guard := auth.NewGuard(newDirectory(t, people()...))
	server, _ := startServer(t, func(c *tunnel.ServerConfig) { c.Guard = guard })
	text := upgrade(hello(sessionID(), false, 0), bearer(tokenOfAlice))

	s := &session{raw: dialRaw(t, server, ""), next: 5}
	copy(s.id[:], helloOf(t, text)[2:])
	s.upgrade(text)
	s.send(frameSYN, controlStream, nil)
	s.webSocket(0x89, []byte("heard"))
	for s.pong != "heard" {
		if err := s.more(); err != nil {
			t.Fatal(err)
		}
	}

	replay := &session{raw: dialRaw(t, server, "")}
	replay.upgrade(text)
	if !replay.resumed || replay.sent != s.sent {
		t.Errorf("resumed %v with %d bytes, want the session as it is", replay.resumed, replay.sent)
	}
	if err := s.ended(); err == nil {
		t.Error("the carrier stays")
	}

	back := s.resume(dialRaw(t, server, ""), bearer(tokenOfAlice))
	stream, _, _ := back.open(1, startEcho(t))
	back.echo(stream, "after")
	if err := replay.ended(); strings.Contains(err.Error(), "offset") {
		t.Errorf("the replay ended with %v", err)
	}
	// Now the client has acknowledged something, and a request that knows nothing of that
	// touches nothing.
	back.send(framePSH, stream, []byte("and ")) // which acknowledges the echo
	if _, err := back.bytesOf(stream, 4); err != nil {
		t.Fatal(err)
	}
	back.acknowledge()
	refused(t, server, http.StatusBadRequest, text)
	back.echo(stream, "later")
	// The session is still one, and bob does not get it by the same bytes with his token.
	refused(t, server, http.StatusGone, strings.Replace(text, tokenOfAlice, tokenOfBob, 1))
	back.echo(stream, "and after that")

	// Nor does it help when the token was taken away.
	guard.Use(newDirectory(t, people()[1]))
	if err := back.ended(); err == nil {
		t.Error("the carrier stays")
	}
	refused(t, server, http.StatusUnauthorized, text)
}

// helloOf is the hello in the text of an upgrade request.
func helloOf(t *testing.T, text string) []byte {
	_, rest, _ := strings.Cut(text, "Culvert-Hello: ")
	line, _, _ := strings.Cut(rest, "\r\n")
	b, err := base64.RawURLEncoding.DecodeString(line)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A server that lets everybody in takes no credential for none.
func TestWrongCredentialAtOpenServer(t *testing.T) {
	server, _ := startServer(t, func(c *tunnel.ServerConfig) { c.Guard = auth.NewGuard(auth.Everybody()) })
	for _, lines := range [][]string{
		{bearer("anything")}, {basic("alice", "anything")}, {"Authorization: Negotiate YWJj"}, {"Authorization:"},
		{bearer("one"), bearer("two")},
	} {
		refused(t, server, http.StatusUnauthorized, upgrade(hello(sessionID(), false, 0), lines...))
	}
	openSession(t, server)
}
