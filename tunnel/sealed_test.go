package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
	"culvert/mux/link"
)

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keyed is a directory that knows alice by keys, and by goodToken.
func keyed(t testing.TB, keys ...*ecdh.PrivateKey) *auth.Directory {
	t.Helper()
	rule, err := auth.ParseRule("allow *:*")
	if err != nil {
		t.Fatal(err)
	}
	alice := auth.Identity{
		Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(goodToken))}},
		Policy: auth.Policy{Dial: []auth.Rule{rule}, Listen: []auth.Rule{rule}},
	}
	for _, k := range keys {
		alice.Keys = append(alice.Keys, auth.PublicKey{Bytes: [32]byte(k.PublicKey().Bytes()), Comment: "laptop"})
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{alice}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sealing has a client seal for server, with its own key if that is not nil.
func sealing(server, own *ecdh.PrivateKey) func(*ClientConfig) {
	return func(c *ClientConfig) {
		c.Seal = func(*url.URL) (carrier.Seal, error) {
			return carrier.Seal{Server: [32]byte(server.PublicKey().Bytes()), Key: own}, nil
		}
		if own != nil {
			c.Credential = nil
		}
	}
}

func both(edits ...func(*ClientConfig)) func(*ClientConfig) {
	return func(c *ClientConfig) {
		for _, edit := range edits {
			edit(c)
		}
	}
}

func TestSealedEndToEnd(t *testing.T) {
	key, own := newKey(t), newKey(t)
	server, at := startServer(t, func(c *ServerConfig) {
		c.Key, c.Guard = key, auth.NewGuard(keyed(t, own))
	})
	for name, edit := range map[string]func(*ClientConfig){
		"key":            sealing(key, own),
		"key over http":  both(sealing(key, own), func(c *ClientConfig) { c.Carrier = carrier.ModeHTTP }),
		"token":          sealing(key, nil),
		"token and http": both(sealing(key, nil), func(c *ClientConfig) { c.Carrier = carrier.ModeHTTP }),
	} {
		t.Run(name, func(t *testing.T) {
			addr, conns := target(t)
			client := startClient(t, at, both(edit, local(addr)))
			app := connect(t, client.listening(t, "local"))
			exchange(t, app, within(t, conns, "connection to the target"))
			server.find(t, `msg="session opened"`, "client=alice", "sealed=true")
		})
	}
}

// A token of the largest size gets a client in, in every kind of carrier.
func TestLongToken(t *testing.T) {
	key, token := newKey(t), strings.Repeat("x", 16<<10)
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{{
		Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(token))}}, Policy: auth.Everything(),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	_, at := startServer(t, func(c *ServerConfig) { c.Key, c.Guard = key, auth.NewGuard(d) })
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		for name, edit := range map[string]func(*ClientConfig){"plain": func(*ClientConfig) {}, "sealed": sealing(key, nil)} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				addr, conns := target(t)
				client := startClient(t, at, both(edit, local(addr), func(c *ClientConfig) {
					c.Carrier = mode
					c.Credential = func() (string, error) { return token, nil }
				}))
				exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
			})
		}
	}
}

func TestSealedRefused(t *testing.T) {
	key, own := newKey(t), newKey(t)
	_, at := startServer(t, func(c *ServerConfig) { c.Key, c.Guard, c.Introduce = key, auth.NewGuard(keyed(t, own)), true })
	for name, tt := range map[string]struct {
		edit func(*ClientConfig)
		want error
	}{
		"unknown key": {sealing(key, newKey(t)), carrier.ErrUnauthorized},
		// The key is the credential, and a token does not help.
		"unknown key and a good token": {both(sealing(key, newKey(t)), func(c *ClientConfig) {
			c.Credential = func() (string, error) { return goodToken, nil }
		}), carrier.ErrUnauthorized},
		"nothing": {both(sealing(key, nil), func(c *ClientConfig) { c.Credential = nil }), carrier.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			client := startClient(t, at, tt.edit)
			if err := client.ended(t); !errors.Is(err, tt.want) {
				t.Error(err)
			}
		})
	}
	client := startClient(t, at, sealing(newKey(t), own))
	if _, ok := errors.AsType[*carrier.KeyError](client.ended(t)); !ok {
		t.Errorf("another server's key: %v", client.err)
	}
}

// Streams survive their carriers, sealed or not: one that is cut, and replacements.
func TestSealedResume(t *testing.T) {
	key, own := newKey(t), newKey(t)
	_, at := startServer(t, func(c *ServerConfig) { c.Key, c.Guard = key, auth.NewGuard(keyed(t, own)) })
	p := newPath(t, at)
	addr, conns := target(t)
	client := startClient(t, p.addr, both(sealing(key, own), local(addr), func(c *ClientConfig) {
		c.MaxCarrierAge = 300 * time.Millisecond
	}))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	p.cut()
	client.find(t, `msg="session resumed"`)
	greet(t, app, far)
	client.find(t, `msg="carrier replaced"`)
	exchange(t, app, far)
}

// A key that is taken away ends its carriers; another key of the same identity
// resumes the session.
func TestKeyRotation(t *testing.T) {
	key, first, second := newKey(t), newKey(t), newKey(t)
	guard := auth.NewGuard(keyed(t, first, second))
	server, at := startServer(t, func(c *ServerConfig) { c.Key, c.Guard = key, guard })
	addr, conns := target(t)
	var mu sync.Mutex
	own := first
	client := startClient(t, at, both(local(addr), func(c *ClientConfig) {
		c.Credential = nil
		c.Seal = func(*url.URL) (carrier.Seal, error) {
			mu.Lock()
			defer mu.Unlock()
			return carrier.Seal{Server: [32]byte(key.PublicKey().Bytes()), Key: own}, nil
		}
	}))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)
	mu.Lock()
	own = second
	mu.Unlock()
	guard.Use(keyed(t, second))
	line := server.find(t, `msg="credential ended"`, "key SHA256:", "laptop")
	if strings.Contains(line, goodToken) {
		t.Error("a secret in the log")
	}
	client.find(t, `msg="session resumed"`)
	exchange(t, app, far)
}

// recordingFront leads one connection to the server at at, and returns its own address
// and what the client has sent so far.
func recordingFront(t *testing.T, at string) (addr string, recorded func() []byte) {
	t.Helper()
	var mu sync.Mutex
	var sent []byte
	front := listenLoopback(t)
	var relaying sync.WaitGroup
	relaying.Go(func() {
		a, err := front.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", at)
		if err != nil {
			t.Error(err)
			return
		}
		relaying.Go(func() {
			_, _ = io.Copy(io.MultiWriter(b, writer(func(p []byte) {
				mu.Lock()
				defer mu.Unlock()
				sent = append(sent, p...)
			})), a)
			b.Close()
		})
		_, _ = io.Copy(a, b)
		a.Close()
	})
	t.Cleanup(relaying.Wait) // after the client's end
	t.Cleanup(func() { front.Close() })
	return front.Addr().String(), func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return sent[:len(sent):len(sent)]
	}
}

// A client that sealed its request and is refused is told why, and the audit log says
// that it was refused. Who plays the request again is told nothing, and the log does not
// say that it was the client.
func TestSealedReplayOfRefusal(t *testing.T) {
	key, a := newKey(t), newAuditing(t)
	_, at := startServer(t, func(c *ServerConfig) {
		c.Key, c.Guard, c.Audit = key, auth.NewGuard(limited(t, auth.Limits{Sessions: 1})), a.Log
	})
	first := startClient(t, at, sealing(key, nil))
	first.find(t, `msg="session opened"`)
	front, recorded := recordingFront(t, at)
	second := startClient(t, front, sealing(key, nil))
	if e := a.event(t, auditSessionRefused, 0); e["identity"] != "alice" || e["error"] != link.ErrLimit.Error() {
		t.Errorf("refused: %v", e)
	}
	if err := second.ended(t); !strings.Contains(err.Error(), `503 Service Unavailable, refusal "limit": "too many sessions"`) {
		t.Errorf("the client was told %v", err)
	}

	all := recorded()
	again := connect(t, at)
	if _, err := again.Write(all[:strings.Index(string(all), "\r\n\r\n")+4]); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("HTTP/1.1 101"))
	if _, err := io.ReadFull(again, answer); err != nil || string(answer) != "HTTP/1.1 101" {
		t.Errorf("the replay was answered %q, %v", answer, err)
	}
	again.Close()
	if e := a.event(t, auditUnconfirmed, 0); e["identity"] != "alice" || e["remote"] != again.LocalAddr().String() {
		t.Errorf("unconfirmed: %v", e)
	}
	if n := len(a.events(t, auditSessionRefused)); n != 1 {
		t.Errorf("%d sessions were refused", n)
	}
	if n := len(a.events(t, auditLogin)); n != 2 {
		t.Errorf("%d logins", n)
	}
}

// Somebody on the way plays an upgrade again, byte for byte, while its session lives
// on the carrier that came of it: the session does not notice.
func TestSealedReplay(t *testing.T) {
	key, own := newKey(t), newKey(t)
	server, at := startServer(t, func(c *ServerConfig) {
		c.Key, c.Guard, c.MaxSessionsPerIdentity = key, auth.NewGuard(keyed(t, own)), 1
	})
	front, recorded := recordingFront(t, at)
	addr, conns := target(t)
	client := startClient(t, front, both(sealing(key, own), local(addr)))
	app := connect(t, client.listening(t, "local"))
	far := within(t, conns, "connection to the target")
	greet(t, app, far)

	all := recorded()
	request := all[:strings.Index(string(all), "\r\n\r\n")+4]
	for _, played := range [][]byte{request, all} {
		for range 20 {
			again := connect(t, at)
			if _, err := again.Write(played); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, len("HTTP/1.1 101"))
			if _, err := io.ReadFull(again, answer); err != nil || string(answer) != "HTTP/1.1 101" {
				t.Fatalf("answered %q, %v", answer, err)
			}
		}
	}
	exchange(t, app, far)
	for _, word := range []string{"resumed", "replaced", "session lost"} {
		if text := server.String() + client.String(); strings.Contains(text, word) {
			t.Errorf("%q in the log:\n%s", word, text)
		}
	}
	if n := strings.Count(server.String(), `msg="session opened"`); n != 1 {
		t.Errorf("%d sessions", n)
	}

	// When the session is over, they make none: there is still room for the one that
	// alice may have.
	client.stop()
	server.find(t, `msg="session closed"`)
	for range 20 {
		again := connect(t, at)
		if _, err := again.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	next := startClient(t, at, sealing(key, own))
	next.find(t, `msg="session opened"`)

	// Those that wait for more do not keep the server from stopping.
	began := time.Now()
	server.stop()
	if err := server.ended(t); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("the server has stopped after %v, %v", time.Since(began), err)
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}
