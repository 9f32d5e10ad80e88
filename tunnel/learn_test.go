package tunnel

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
	"culvert/mux/link"
)

func TestByPath(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{io.EOF, true},
		{io.ErrUnexpectedEOF, true},
		{reset, true},
		{fmt.Errorf("carrier: read: %w", reset), true},
		{&carrier.CloseError{Code: 1001, Reason: "Going away"}, true}, // of an API gateway
		{&carrier.CloseError{Code: 1011}, true},
		{&carrier.CloseError{Code: 1000, Reason: "replaced"}, false},
		{&carrier.CloseError{Code: 1002}, false},
		{&carrier.CloseError{Code: 1008, Reason: "credential ended"}, false},
		{&carrier.CloseError{Code: 1009}, false},
		{net.ErrClosed, false},
		{carrier.ErrSeal, false},
		{carrier.ErrProtocol, false},
		{link.ErrDisplaced, false},
		{link.ErrChecksum, false},
		{errNetworkChanged, false},
	} {
		if got := byPath(tt.err); got != tt.want {
			t.Errorf("%v: %t", tt.err, got)
		}
	}
}

// learnsEarly has a client believe in idle limits of tenths of a second.
func learnsEarly(c *ClientConfig) { c.HeartbeatMin = 100 * time.Millisecond }

// quietFor is how long the carriers of these tests are quiet before they die.
const quietFor = 400 * time.Millisecond

// wantNothingLearned checks the log of a client that has lost carriers.
func wantNothingLearned(t *testing.T, client *agent) {
	t.Helper()
	if log := client.String(); strings.Contains(log, "limit learned") {
		t.Error("a limit was learned")
	}
}

// A server that takes credentials away, again and again after the same quiet time,
// teaches its clients no limit.
func TestRotationTeachesNothing(t *testing.T) {
	t.Parallel()
	tokens := []string{firstToken, secondToken}
	only := func(token string) *auth.Directory {
		return alices(t, auth.Identity{Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(token))}}})
	}
	guard := auth.NewGuard(only(firstToken))
	_, at := startServer(t, func(c *ServerConfig) { c.Guard = guard })
	credential := newKeyring(firstToken)
	client := startClient(t, at, both(learnsEarly, credential.use))
	client.find(t, "session opened")
	const rotations = 3
	for i := range rotations {
		<-time.After(quietFor)
		token := tokens[(i+1)%2]
		credential.Store(token)
		guard.Use(only(token))
		for strings.Count(client.String(), "session resumed") <= i {
			within(t, client.lines, "session resumed")
		}
	}
	wantNothingLearned(t, client)
	if n := strings.Count(client.String(), "with code 1008"); n != rotations {
		t.Errorf("the client was told %d times why, want %d", n, rotations)
	}
}

// A server that is killed again and again after the same quiet time teaches nothing:
// the next one does not know the session.
func TestKilledServersTeachNothing(t *testing.T) {
	t.Parallel()
	_, first := startServer(t, nil)
	p := newPath(t, first)
	client := startClient(t, p.addr, learnsEarly)
	client.find(t, "session opened")
	for i := range 3 {
		_, next := startServer(t, nil)
		<-time.After(quietFor)
		p.lead(next)
		p.cut()
		for strings.Count(client.String(), "session opened") <= i+1 {
			within(t, client.lines, "session opened")
		}
	}
	wantNothingLearned(t, client)
}

// A server that is away after a cut teaches nothing either.
func TestOutagesTeachNothing(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	nowhere := listenLoopback(t)
	nowhere.Close()
	p := newPath(t, server)
	client := startClient(t, p.addr, learnsEarly)
	client.find(t, "session opened")
	for i := range 3 {
		<-time.After(quietFor)
		failed := strings.Count(client.String(), "connect failed")
		p.lead(nowhere.Addr().String())
		p.cut()
		for strings.Count(client.String(), "connect failed") == failed {
			within(t, client.lines, "connect failed")
		}
		p.lead(server)
		for strings.Count(client.String(), "session resumed") <= i {
			within(t, client.lines, "session resumed")
		}
	}
	wantNothingLearned(t, client)
}

// A carrier that is cut while its successor is dialled teaches nothing: the server may
// have cut it because of that.
func TestDisplacedCarriersTeachNothing(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	p := newPath(t, server)
	p.mu.Lock()
	p.single = true
	p.mu.Unlock()
	client := startClient(t, p.addr, both(learnsEarly, func(c *ClientConfig) { c.MaxCarrierAge = 600 * time.Millisecond }))
	for strings.Count(client.String(), "session resumed") < 3 {
		within(t, client.lines, "session resumed")
	}
	wantNothingLearned(t, client)
}

// Cuts of the path after the same quiet time, on the other hand, do teach.
func TestCutsOfThePathTeach(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	p := newPath(t, server)
	client := startClient(t, p.addr, learnsEarly)
	client.find(t, "session opened")
	<-time.After(quietFor)
	p.cut()
	client.find(t, "session resumed")
	wantNothingLearned(t, client) // from one death
	// A busy machine may make some quiet times longer.
	for i := 1; i < 20 && !strings.Contains(client.String(), "idle limit learned"); i++ {
		<-time.After(quietFor)
		p.cut()
		for strings.Count(client.String(), "session resumed") <= i {
			within(t, client.lines, "session resumed")
		}
	}
	client.find(t, "idle limit learned")
}

// A lesson holds for the way to its own server only.
func TestLessonOfAnotherServer(t *testing.T) {
	one, other := &learner{}, &learner{}
	one.path.min, one.path.heartbeat = time.Second, 20*time.Second
	for range 2 {
		l := &lesson{learner: one, life: carrier.Life{Quiet: 5 * time.Second, Exact: true, Age: 5 * time.Second}}
		l.resumed(other)
	}
	if one.path.facts != (facts{}) {
		t.Errorf("learned %+v", one.path.facts)
	}
	(*lesson)(nil).resumed(other)
}
