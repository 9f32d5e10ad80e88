package carrier_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

func publicOf(key *ecdh.PrivateKey) [32]byte { return [32]byte(key.PublicKey().Bytes()) }

func sealFor(server, own *ecdh.PrivateKey) func() (carrier.Seal, error) {
	return func() (carrier.Seal, error) {
		return carrier.Seal{Server: publicOf(server), Where: "known:1", Key: own}, nil
	}
}

func TestSealedMessages(t *testing.T) {
	for name, cfg := range map[string]carriertest.Config{
		"memory": {}, "ws": {TCP: true}, "wss": {TCP: true, TLS: true}, "http": {TCP: true, HTTP: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Sealed = true
			client, server := carriertest.Pair(t, cfg)
			if !client.Secure() || !server.Secure() || !client.Sealed() || !server.Sealed() {
				t.Error("an end does not say that it is sealed")
			}
			buf := make([]byte, maxMessage+carrier.SealOverhead)
			for _, size := range []int{0, 1, 100, 125, 126, 16<<10 - 1, 16 << 10, 65535, 128 << 10, maxMessage} {
				for _, way := range []struct{ from, to *carrier.Conn }{{client, server}, {server, client}} {
					message := bytes.Repeat([]byte{byte(size), 7}, size/2+1)[:size]
					sent := make(chan error, 1)
					go func() { sent <- send(way.from, bytes.Clone(message), []byte("and this")) }()
					n, err := way.to.ReadMessage(buf)
					if err != nil || !bytes.Equal(buf[:n], message) {
						t.Fatalf("%d bytes became %d, %v", size, n, err)
					}
					if n, err := way.to.ReadMessage(buf); err != nil || string(buf[:n]) != "and this" {
						t.Fatalf("after %d bytes: %q, %v", size, buf[:n], err)
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// What is written is as it was when it was sent, for it may be sent again.
func TestSealedMessageIsGivenBack(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{Sealed: true})
	go func() { _, _ = server.ReadMessage(make([]byte, 1<<18)) }()
	message := bytes.Repeat([]byte("abc"), 30_000)
	if err := send(client, message); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(message, bytes.Repeat([]byte("abc"), 30_000)) {
		t.Error("it was changed")
	}
}

// recording keeps what its owner writes, and may do something else with it.
type recording struct {
	net.Conn
	mu    sync.Mutex
	wrote [][]byte
	edit  func(n int, p []byte) [][]byte // what the n-th write becomes; nil: itself
}

func (c *recording) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.wrote = append(c.wrote, bytes.Clone(p))
	out := [][]byte{p}
	if c.edit != nil {
		out = c.edit(len(c.wrote)-1, bytes.Clone(p))
	}
	c.mu.Unlock()
	for _, b := range out {
		if _, err := c.Conn.Write(b); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (c *recording) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(bytes.Join(c.wrote, nil))
}

// sealedServer is a server in memory with a key.
type sealedServer struct {
	key      *ecdh.PrivateKey
	network  *carriertest.Network
	handler  *carrier.Handler
	attached chan *carrier.Conn
	seen     chan *http.Request // that Authenticate is asked about
}

func newSealedServer(t *testing.T, edit func(*sealedServer, *carrier.ServerConfig)) *sealedServer {
	s := &sealedServer{
		key: carriertest.Key(t), network: carriertest.NewNetwork(),
		attached: make(chan *carrier.Conn, 10), seen: make(chan *http.Request, 100),
	}
	s.handler = &carrier.Handler{
		Key: s.key,
		Authenticate: func(r *http.Request) (carrier.Client, error) {
			s.seen <- r
			if _, ok := carrier.PeerKey(r); ok {
				return carrier.Client{Identity: "keyed"}, nil
			}
			return secretOnly(r)
		},
		Admit: func(r carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{
				Reply:  append([]byte("re: "), r.Hello...),
				Attach: func(c *carrier.Conn) { s.attached <- c },
			}, nil
		},
	}
	cfg := carrier.ServerConfig{Handler: s.handler}
	if edit != nil {
		edit(s, &cfg)
	}
	serve(t, s.network, cfg)
	return s
}

func (s *sealedServer) dialer(own *ecdh.PrivateKey) *carrier.Dialer {
	return &carrier.Dialer{
		URL:     &url.URL{Scheme: "ws", Host: "tunnel.example:80"}, // not loopback
		NetDial: s.network.Dial, Seal: sealFor(s.key, own), Credential: token("secret"),
	}
}

// dial dials, and returns the client's end when the server has its own.
func (s *sealedServer) dial(t *testing.T, d *carrier.Dialer) (client, server *carrier.Conn) {
	t.Helper()
	client, reply, err := d.Dial(t.Context(), []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if string(reply) != "re: hello" {
		t.Errorf("reply %q", reply)
	}
	server = <-s.attached
	t.Cleanup(func() { abort(client, server) })
	return client, server
}

// A token travels sealed, also over ws to anywhere, and nothing else is believed.
func TestSealedCredential(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		for name, own := range map[string]*ecdh.PrivateKey{"token": nil, "key": carriertest.Key(t)} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				s := newSealedServer(t, nil)
				var mu sync.Mutex
				var conns []*recording
				d := s.dialer(own)
				d.Mode = mode
				d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := s.network.Dial(ctx, network, addr)
					mu.Lock()
					defer mu.Unlock()
					conns = append(conns, &recording{Conn: conn})
					return conns[len(conns)-1], err
				}
				client, server := s.dial(t, d)
				if err := send(client, []byte("message")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				if n, err := server.ReadMessage(buf); err != nil || string(buf[:n]) != "message" {
					t.Errorf("%q, %v", buf[:n], err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, c := range conns {
					for _, word := range []string{"secret", "aGVsbG8", "message"} {
						if strings.Contains(c.text(), word) {
							t.Errorf("%q can be read", word)
						}
					}
				}
				for len(s.seen) > 0 {
					r := <-s.seen
					key, ok := carrier.PeerKey(r)
					bearer, _ := carrier.BearerToken(r)
					if own != nil && (!ok || key != publicOf(own) || bearer != "") || own == nil && (ok || bearer != "secret") {
						t.Errorf("authenticated with %x, %q", key, bearer)
					}
				}
			})
		}
	}
}

// An Authorization header that somebody adds on the way means nothing.
func TestSealedCredentialIsTheOnlyOne(t *testing.T) {
	s := newSealedServer(t, nil)
	d := s.dialer(nil)
	d.Credential = nil
	d.NetDial = s.adding("Authorization: Bearer secret\r\n")
	if err := dialed(t, d); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Errorf("with an added credential: %v", err)
	}
	d.Credential = token("secret")
	d.NetDial = s.adding("Authorization: Bearer wrong\r\n")
	s.dial(t, d)
}

// adding dials through something that adds a header to the request.
func (s *sealedServer) adding(header string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := s.network.Dial(ctx, network, addr)
		return &recording{Conn: conn, edit: func(n int, p []byte) [][]byte {
			return [][]byte{bytes.Replace(p, []byte("\r\n"), []byte("\r\n"+header), 1)}
		}}, err
	}
}

func TestSealedRefused(t *testing.T) {
	open := func(s *sealedServer, _ *carrier.ServerConfig) { s.handler.Introduce = true }
	noKey := func(s *sealedServer, _ *carrier.ServerConfig) { s.handler.Key = nil }
	for name, tt := range map[string]struct {
		edit    func(*sealedServer, *carrier.ServerConfig)
		wrong   bool // the client knows another key
		secret  string
		other   bool // and is told
		keyless bool // the server has no key
	}{
		"no key at the server":              {edit: noKey, secret: "secret", keyless: true},
		"another key":                       {wrong: true, secret: "secret"},
		"another key, and the server tells": {edit: open, wrong: true, secret: "secret", other: true},
		"wrong token":                       {secret: "wrong"},
		"wrong token, and the server tells": {edit: open, secret: "wrong"},
		"no key, though it would tell":      {edit: func(s *sealedServer, c *carrier.ServerConfig) { open(s, c); noKey(s, c) }, secret: "secret", keyless: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSealedServer(t, tt.edit)
			d := s.dialer(nil)
			d.Credential = token(tt.secret)
			known := s.key
			if tt.wrong {
				known = carriertest.Key(t)
				d.Seal = sealFor(known, nil)
			}
			err := dialed(t, d)
			if !carrier.Permanent(err) {
				t.Errorf("not permanent: %v", err)
			}
			if _, ok := errors.AsType[*carrier.DialError](err); !ok {
				t.Errorf("no DialError: %v", err)
			}
			wrong, told := errors.AsType[*carrier.KeyError](err)
			if told != tt.other || told && (wrong.Known != publicOf(known) || wrong.Shown != publicOf(s.key)) {
				t.Errorf("%v", err)
			}
			if told && !strings.Contains(err.Error(), "known:1") {
				t.Errorf("does not say where: %v", err)
			}
			if refused, _ := errors.AsType[*carrier.RefusedError](err); tt.keyless {
				if refused == nil || refused.Token != carrier.RefusalSeal {
					t.Errorf("%v, want that the server has no key", err)
				}
			} else if !told && (!errors.Is(err, carrier.ErrUnauthorized) || !strings.Contains(err.Error(), "SHA256:")) {
				t.Errorf("%v", err)
			}
			if len(s.attached) > 0 {
				t.Error("attached")
			}
		})
	}
}

// Whoever answers without the server's key is not believed.
func TestSealedAnswer(t *testing.T) {
	u := listening(t, culvert)
	d := &carrier.Dialer{URL: parseURL(t, u), Seal: sealFor(carriertest.Key(t), nil)}
	err := dialed(t, d)
	phaseOf(t, err, carrier.PhaseHello)
	if !errors.Is(err, carrier.ErrSeal) || !carrier.Permanent(err) {
		t.Error(err)
	}
}

func TestAskKey(t *testing.T) {
	s := newSealedServer(t, func(s *sealedServer, _ *carrier.ServerConfig) { s.handler.Introduce = true })
	var conn *recording
	d := s.dialer(nil)
	d.Seal = func() (carrier.Seal, error) { return carrier.Seal{}, errors.New("not known yet") }
	d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := s.network.Dial(ctx, network, addr)
		conn = &recording{Conn: c}
		return conn, err
	}
	key, err := d.AskKey(t.Context())
	if err != nil || key != publicOf(s.key) {
		t.Errorf("%x, %v", key, err)
	}
	if strings.Contains(conn.text(), "secret") {
		t.Error("it was asked with the credential")
	}
	if len(s.seen) > 0 {
		t.Error("the credential was looked at")
	}
	s.handler.Introduce = false
	if _, err := d.AskKey(t.Context()); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Errorf("a server that does not tell: %v", err)
	}
	s.handler.Introduce, s.handler.Key = true, nil
	if _, err := d.AskKey(t.Context()); !errors.Is(err, carrier.ErrUnauthorized) {
		t.Errorf("a server without a key: %v", err)
	}
}

// Nobody but the server sees the credential, not even when the sealed request was refused
// and the client asks whose key the server has. What is for a proxy in front of the server
// goes with each request.
func TestAskKeyWithoutCredential(t *testing.T) {
	for name, front := range map[string]func(*carrier.Dialer){
		"no front": func(*carrier.Dialer) {},
		"Header":   func(d *carrier.Dialer) { d.Header = http.Header{"authorization": {"Basic front"}} },
		"SecretHeader": func(d *carrier.Dialer) {
			d.SecretHeader = func() (http.Header, error) { return http.Header{"authorization": {"Basic front"}}, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSealedServer(t, nil)
			var conns []*recording
			d := s.dialer(nil)
			d.Credential, d.AllowPlaintext = token("private"), true
			d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := s.network.Dial(ctx, network, addr)
				conns = append(conns, &recording{Conn: c})
				return conns[len(conns)-1], err
			}
			front(d)
			if err := dialed(t, d); !errors.Is(err, carrier.ErrUnauthorized) {
				t.Error(err)
			}
			if len(conns) != 2 {
				t.Errorf("%d requests", len(conns))
			}
			for i, c := range conns {
				text := c.text()
				if strings.Contains(text, "private") {
					t.Errorf("request %d has the credential in it:\n%s", i, text)
				}
				if strings.Contains(text, "Authorization: Basic front") != (name != "no front") {
					t.Errorf("request %d with %s:\n%s", i, name, text)
				}
			}
		})
	}
}

// Whatever somebody on the way does to messages, none is delivered that was not sent,
// and the carrier ends.
func TestSealedTampering(t *testing.T) {
	last := func(p []byte, back int) []byte {
		p[len(p)-back] ^= 1
		return p
	}
	var kept []byte
	for name, edit := range map[string]func(n int, p []byte) [][]byte{
		"changed": func(n int, p []byte) [][]byte { return [][]byte{last(p, 18)} },
		"tag":     func(n int, p []byte) [][]byte { return [][]byte{last(p, 1)} },
		"left out": func(n int, p []byte) [][]byte {
			if n == 3 {
				return nil
			}
			return [][]byte{p}
		},
		"twice": func(n int, p []byte) [][]byte { return [][]byte{p, p} },
		"swapped": func(n int, p []byte) [][]byte {
			if kept == nil {
				kept = p
				return nil
			}
			return [][]byte{p, kept}
		},
	} {
		t.Run(name, func(t *testing.T) {
			kept = nil
			s := newSealedServer(t, nil)
			d := s.dialer(nil)
			d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := s.network.Dial(ctx, network, addr)
				return &recording{Conn: conn, edit: func(n int, p []byte) [][]byte {
					if n < 3 || len(p) < 16 { // the request, the confirmation and a message; the close frame
						return [][]byte{p}
					}
					return edit(n, p)
				}}, err
			}
			client, server := s.dial(t, d)
			go func() { _, _ = client.ReadMessage(make([]byte, 100)) }()
			sent := []string{"message 0", "message 1", "message 2", "message 3"}
			for _, text := range sent {
				if err := send(client, []byte(text)); err != nil {
					break // it has been told
				}
			}
			buf := make([]byte, 100)
			for i := 0; ; i++ {
				n, err := server.ReadMessage(buf)
				if err != nil {
					if !errors.Is(err, carrier.ErrSeal) {
						t.Error(err)
					}
					if i == 0 {
						t.Error("not even the first message came")
					}
					break
				}
				if i >= len(sent) || string(buf[:n]) != sent[i] {
					t.Fatalf("message %d is %q", i, buf[:n])
				}
			}
			if _, err := server.ReadMessage(buf); !errors.Is(err, carrier.ErrSeal) {
				t.Errorf("read again: %v", err)
			}
		})
	}
}

// A message that is too large by one byte is still refused.
func TestSealedMessageTooLarge(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{
		Sealed: true, Options: carrier.Options{MaxMessage: 1001}, ServerOptions: &carrier.Options{MaxMessage: 1000},
	})
	go func() { _, _ = client.ReadMessage(make([]byte, 2000)) }()
	if err := send(client, make([]byte, 1001)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.ReadMessage(make([]byte, 2000)); !errors.Is(err, carrier.ErrMessageTooLarge) {
		t.Error(err)
	}
}

// A close frame is not sealed, so it says nothing.
func TestSealedCloseSaysNothing(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{Sealed: true})
	got := read(server)
	_ = client.Close("a reason")
	var closed *carrier.CloseError
	if err := <-got; !errors.As(err, &closed) || closed.Code != 1000 || closed.Reason != "" {
		t.Error(err)
	}
}

// A recorded upgrade that is played again, byte for byte, gets an answer and nothing
// else: no carrier is attached, whatever follows, and soon it is cut.
func TestSealedReplay(t *testing.T) {
	for name, more := range map[string]bool{"the upgrade": false, "the upgrade and what followed": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newSealedServer(t, nil)
				var conn *recording
				d := s.dialer(carriertest.Key(t))
				d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := s.network.Dial(ctx, network, addr)
					conn = &recording{Conn: c}
					return conn, err
				}
				client, server := s.dial(t, d)
				if err := send(client, []byte("message")); err != nil {
					t.Fatal(err)
				}
				defer abort(client, server)
				synctest.Wait()

				began := time.Now()
				again, err := s.network.Dial(t.Context(), "", "")
				if err != nil {
					t.Fatal(err)
				}
				defer again.Close()
				conn.mu.Lock()
				play := conn.wrote
				if !more {
					play = play[:1]
				}
				conn.mu.Unlock()
				go func() {
					for _, p := range play {
						if _, err := again.Write(p); err != nil {
							return
						}
					}
				}()
				answer, _ := io.ReadAll(again)
				if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
					t.Errorf("answered %q", answer)
				}
				if took := time.Since(began); took > 13*time.Second || more && took > 3*time.Second {
					t.Errorf("cut after %v", took)
				}
				synctest.Wait()
				if len(s.attached) > 0 {
					t.Error("attached")
				}
				if err := send(client, []byte("still there")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A refusal of a sealed request is told to its client, as one that is not sealed, and to
// nobody else: who plays the request again cannot tell the answer from any other. The
// server is told which of the two it was.
func TestSealedRefusal(t *testing.T) {
	refusals := []*carrier.Refusal{
		nil,
		{Status: 410, Token: carrier.RefusalGone, Text: "no such session"},
		{Status: 503, Token: carrier.RefusalLimit, Text: "too many sessions"},
		{Status: 503, Token: carrier.RefusalStopping, Text: "server is stopping"},
		{Status: 400, Token: carrier.RefusalMalformed, Text: "malformed hello"},
	}
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		var answers []string // to replays
		for _, refusal := range refusals {
			t.Run(fmt.Sprintf("%s, %v", mode, refusal), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					confirmed := make(chan bool, 10)
					s := newSealedServer(t, func(s *sealedServer, _ *carrier.ServerConfig) {
						admit := s.handler.Admit
						s.handler.Admit = func(r carrier.Request) (carrier.Admission, error) {
							r.OnConfirmed(func(is bool) { confirmed <- is })
							if refusal != nil {
								return carrier.Admission{}, refusal
							}
							return admit(r)
						}
					})
					var first *recording
					d := s.dialer(carriertest.Key(t))
					d.Mode = mode
					if mode == carrier.ModeWebSocket { // a pipe dials several times at once
						d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
							c, err := s.network.Dial(ctx, network, addr)
							first = &recording{Conn: c}
							return first, err
						}
					}
					began := time.Now()
					client, _, err := d.Dial(t.Context(), []byte("hello"))
					if took := time.Since(began); took > time.Second {
						t.Errorf("dialled for %v", took)
					}
					refused, _ := errors.AsType[*carrier.RefusedError](err)
					switch {
					case refusal == nil:
						if err != nil {
							t.Fatal(err)
						}
						abort(client, <-s.attached)
					case refused == nil || refused.Status != refusal.Status || refused.Token != refusal.Token || refused.Body != refusal.Text:
						t.Errorf("the client was told %v", err)
					}
					if !<-confirmed {
						t.Error("the server was not told that it was the client")
					}
					if mode == carrier.ModeHTTP {
						return
					}

					again, err := s.network.Dial(t.Context(), "", "")
					if err != nil {
						t.Fatal(err)
					}
					defer again.Close()
					if _, err := again.Write(first.wrote[0]); err != nil {
						t.Fatal(err)
					}
					answer, err := io.ReadAll(again)
					if took := time.Since(began); took != 10*time.Second {
						t.Errorf("cut after %v", took)
					}
					if <-confirmed {
						t.Error("the server was told that it was the client")
					}
					hello := regexp.MustCompile(`Culvert-Hello: \S+`)
					found := hello.Find(answer)
					answer = hello.ReplaceAll(answer, fmt.Appendf(nil, "%d bytes", len(found)))
					answer = regexp.MustCompile(`Accept: \S+`).ReplaceAll(answer, nil) // of the request's key
					answers = append(answers, fmt.Sprintf("%s %v", date.ReplaceAll(answer, nil), err))
				})
			})
		}
		for _, answer := range answers {
			if answer != answers[0] || !strings.HasPrefix(answer, "HTTP/1.1 101 ") {
				t.Errorf("one replay was answered %q\nanother one %q", answers[0], answer)
			}
		}
	}
}

// What a server seals that is no answer is a broken one.
func TestSealedAnswerIsMalformed(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty": {}, "short": {0, 101, 0}, "cut": {0, 101, 0, 5, 'r', 'e'}, "a status that is no refusal": {0, 200, 0, 0},
	} {
		if err := carrier.OpenAnswer(content); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Until a sealed upgrade is confirmed, its connection is one of those that are bounded.
func TestSealedReplayIsCounted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSealedServer(t, func(_ *sealedServer, cfg *carrier.ServerConfig) { cfg.MaxUnauthenticated = 1 })
		var conn *recording
		d := s.dialer(nil)
		d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := s.network.Dial(ctx, network, addr)
			conn = &recording{Conn: c}
			return conn, err
		}
		client, server := s.dial(t, d)
		defer abort(client, server)
		began := time.Now()
		again, err := s.network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if _, err := again.Write(conn.wrote[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		client2, server2 := s.dial(t, s.dialer(nil)) // one more
		defer abort(client2, server2)
		closed(t, again)
		if time.Since(began) > time.Second {
			t.Error("the replay kept its place")
		}
		// The carriers are not counted any more.
		for _, c := range []*carrier.Conn{client, client2} {
			if err := send(c, []byte("there")); err != nil {
				t.Error(err)
			}
		}
	})
}
