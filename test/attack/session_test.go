package attack

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"culvert/tunnel"
)

// The client of these tests can do what a client does.
func TestRawClient(t *testing.T) {
	server, _ := startServer(t, nil)
	s := openSession(t, server, bearer(tokenOfAlice))
	stream, code, reason := s.open(1, startEcho(t))
	if code != 0 {
		t.Fatalf("refused with %d %q", code, reason)
	}
	s.echo(stream, "hello")
	if addr, code, reason := s.listen(1, "127.0.0.1:0"); code != 0 {
		t.Errorf("refused with %d %q", code, reason)
	} else {
		t.Log(addr)
	}
	if _, code, _ := s.open(1, "169.254.169.254:80"); code != 5 {
		t.Errorf("answered %d, want 5", code)
	}
	s.echo(stream, "again")
}

// A session of another identity is no different from none.
func TestResumedByAnother(t *testing.T) {
	server, _ := startServer(t, nil)
	s := openSession(t, server, bearer(tokenOfAlice))
	stream, _, _ := s.open(1, startEcho(t))
	s.echo(stream, "before")

	answer := func(id [16]byte, line string) (string, string) {
		t.Helper()
		resp, body := refused(t, server, http.StatusGone, upgrade(hello(id, true, 0), line))
		return resp.Header.Get("Culvert-Refusal"), body
	}
	token1, body1 := answer(s.id, bearer(tokenOfBob))
	token2, body2 := answer(sessionID(), bearer(tokenOfBob))
	if token1 != "gone" || token1 != token2 || body1 != body2 {
		t.Errorf("told %q %q, and of no session %q %q", token1, body1, token2, body2)
	}
	// Not even to open "it": bob's session with the same identifier is another.
	refused(t, server, http.StatusGone, upgrade(hello(s.id, false, 0), bearer(tokenOfBob)))
	s.echo(stream, "after")
}

// Of an identity's streams 256 are opened at once, whatever its sessions ask for, and those
// of another one do not wait for them.
func TestFewOpensAtOnce(t *testing.T) {
	const asked, most = 600, 256
	began, release := make(chan string, 2*asked), make(chan struct{})
	server, _ := startServer(t, func(c *tunnel.ServerConfig) {
		c.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			began <- name
			if name == "alice.example" {
				select {
				case <-release:
				case <-ctx.Done():
				}
			}
			return nil, errors.New("no such host")
		}
	})
	for range 2 {
		s := openSession(t, server, bearer(tokenOfAlice))
		for range asked / 2 {
			s.send(frameSYN, s.next, nil)
			s.send(framePSH, s.next, append([]byte{1, 0, 16}, "alice.example:80"...))
			s.next += 2
		}
		s.acknowledge()
	}
	for range most {
		<-began
	}
	if _, code, reason := openSession(t, server, bearer(tokenOfBob)).open(1, "bob.example:80"); code != 4 {
		t.Errorf("bob's stream: %d %q", code, reason)
	}
	if name := <-began; name != "bob.example" || len(began) > 0 {
		t.Errorf("%s and %d more are looked up, want bob's only", name, len(began))
	}
	close(release)
	for range asked - most {
		<-began
	}
}
