package attack

import (
	"net/http"
	"testing"
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
