package tunnel

import (
	"bufio"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
)

func tokenUntil(text string, end time.Time) auth.Token {
	return auth.Token{Sum: sha256.Sum256([]byte(text)), Expires: end}
}

// alices is a directory of alice with the credentials.
func alices(t *testing.T, alice auth.Identity) *auth.Directory {
	t.Helper()
	alice.Name, alice.Policy = "alice", auth.Everything()
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{alice}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// keyring is what a client has for a credential at the moment.
type keyring struct{ atomic.Value }

func newKeyring(credential string) *keyring {
	k := new(keyring)
	k.Store(credential)
	return k
}

func (k *keyring) use(c *ClientConfig) {
	c.Credential = func() (string, error) { return k.Load().(string), nil }
}

const firstToken, secondToken = "first-0123456789abcdefghij", "second-0123456789abcdefghij"

// A carrier ends with the token that it came with: who has another goes on, who has
// none is told so.
func TestTokenExpires(t *testing.T) {
	end := time.Now().Add(3 * time.Second)
	guard := auth.NewGuard(alices(t, auth.Identity{Tokens: []auth.Token{
		tokenUntil(firstToken, end), tokenUntil(secondToken, time.Time{}),
	}}))
	server, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	addr, conns := target(t)
	token := newKeyring(firstToken)
	client := startClient(t, at, func(c *ClientConfig) {
		local(addr)(c)
		token.use(c)
	})
	late := startClient(t, at, func(c *ClientConfig) { newKeyring(firstToken).use(c) })
	app := connect(t, client.listening(t, "local"))
	there := within(t, conns, "connection to the target")
	greet(t, app, there)
	late.find(t, `msg="session opened"`)
	token.Store(secondToken)
	if time.Now().After(end) {
		t.Skip("this machine is too slow for tokens of three seconds")
	}

	server.find(t, `msg="credential ended"`, "client=alice", "credential=token", auth.ErrExpired.Error())
	if time.Now().Before(end) {
		t.Error("ended too early")
	}
	client.find(t, `msg="session resumed"`)
	late.find(t, `msg="connect failed"`, "401")
	exchange(t, app, there)
	for _, a := range []*agent{server, client, late} {
		if log := a.String(); strings.Contains(log, firstToken) || strings.Contains(log, secondToken) {
			t.Error("credential in the log")
		}
	}
}

// One token follows another while both are good, and nothing is lost when the old one
// is taken away. A password may follow a token.
func TestRotation(t *testing.T) {
	password := func(text string) auth.Password {
		p, err := auth.ParsePassword(auth.HashPassword(text))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	labelled := func(text, label string) []auth.Token {
		return []auth.Token{{Sum: sha256.Sum256([]byte(text)), Label: label}}
	}
	first, second := auth.Identity{Tokens: labelled(firstToken, "first")}, auth.Identity{Tokens: labelled(secondToken, "second")}
	third := auth.Identity{Passwords: []auth.Password{password("open sesame")}}
	guard := auth.NewGuard(alices(t, first))
	server, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	addr, conns := target(t)
	credential := newKeyring(firstToken)
	client := startClient(t, at, func(c *ClientConfig) {
		local(addr)(c)
		credential.use(c)
	})
	app := connect(t, client.listening(t, "local"))
	there := within(t, conns, "connection to the target")
	greet(t, app, there)

	both := func(a, b auth.Identity) auth.Identity {
		return auth.Identity{Tokens: append(a.Tokens[:1:1], b.Tokens...), Passwords: b.Passwords}
	}
	for _, step := range []struct {
		overlap, after auth.Identity
		credential     string
		ended          string
	}{
		{both(first, second), second, secondToken, `credential="token first"`},
		{both(second, third), third, carrier.Basic("alice", "open sesame"), `credential="token second"`},
	} {
		resumed := strings.Count(client.String(), `msg="session resumed"`)
		guard.Use(alices(t, step.overlap))
		greet(t, app, there)
		if n := strings.Count(client.String(), `msg="session resumed"`); n != resumed {
			t.Error("one more credential cuts those who have the other")
		}
		credential.Store(step.credential)
		guard.Use(alices(t, step.after))
		server.find(t, `msg="credential ended"`, step.ended, auth.ErrRevoked.Error())
		greet(t, app, there)
	}
	exchange(t, app, there)
	client.find(t, `msg="session resumed"`)
	for _, a := range []*agent{server, client} {
		if log := a.String(); strings.Contains(log, "sesame") {
			t.Error("credential in the log")
		}
	}
}

// What a stranger is told of the ways to log in, and when nobody looks.
func TestChallenges(t *testing.T) {
	p, err := auth.ParsePassword("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	if err != nil {
		t.Fatal(err)
	}
	guard := auth.NewGuard(alices(t, auth.Identity{}))
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	ask := func(authorization string) *http.Response {
		t.Helper()
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return upgradeOn(t, conn, authorization)
	}
	if got := ask("Bearer wrong").Header.Values("WWW-Authenticate"); len(got) != 1 || got[0] != "Bearer" {
		t.Errorf("without passwords: %q", got)
	}
	guard.Use(alices(t, auth.Identity{Passwords: []auth.Password{p}}))
	resp := ask("")
	if got := resp.Header.Values("WWW-Authenticate"); resp.StatusCode != 401 || len(got) != 2 || !strings.HasPrefix(got[1], "Basic realm=") {
		t.Errorf("with passwords: %s, %q", resp.Status, got)
	}
	for range 10 {
		ask("Bearer wrong")
	}
	resp = ask("Basic YWxpY2U6d3Jvbmc=")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "6" || !resp.Close || resp.Header.Get("Culvert-Refusal") != "" {
		t.Errorf("after failures: %s, %v", resp.Status, resp.Header)
	}
	client := startClient(t, at, func(c *ClientConfig) {
		c.Credential = func() (string, error) { return carrier.Basic("alice", "wrong"), nil }
	})
	client.find(t, `msg="connect failed"`, "429 Too Many Requests", "next_attempt=6s")
}

// A stealthy server answers the address that fails often as quickly as ever: a delay
// would say that somebody looks.
func TestStealthIsNotSlow(t *testing.T) {
	guard := auth.NewGuard(alices(t, auth.Identity{}))
	_, at := startServer(t, func(c *ServerConfig) { c.Guard, c.Stealth = guard, true })
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	began := time.Now()
	for range 20 {
		if resp := upgradeOn(t, conn, "Bearer wrong"); resp.StatusCode != 404 {
			t.Fatal(resp.Status)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("20 wrong credentials took %v", took)
	}
}

// upgradeOn asks for an upgrade and returns the answer.
func upgradeOn(t *testing.T, conn net.Conn, authorization string) *http.Response {
	t.Helper()
	lines := []string{
		"GET / HTTP/1.1", "Host: culvert.test", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==", "Sec-WebSocket-Protocol: culvert.v1",
	}
	if authorization != "" {
		lines = append(lines, "Authorization: "+authorization)
	}
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// Every request of an HTTP pipe shows the password, which is work but once.
func TestPasswordOverPipe(t *testing.T) {
	p, err := auth.ParsePassword(auth.HashPassword("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	guard := auth.NewGuard(alices(t, auth.Identity{Passwords: []auth.Password{p}}))
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	addr, conns := target(t)
	client := startClient(t, at, func(c *ClientConfig) {
		local(addr)(c)
		c.Carrier = carrier.ModeHTTP
		newKeyring(carrier.Basic("alice", "open sesame")).use(c)
	})
	exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
}
