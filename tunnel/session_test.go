package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"culvert/mux"
	"culvert/mux/link"
)

// fakeCarrier carries messages in memory.
type fakeCarrier struct {
	in, out chan []byte
	dead    *fakeDeath
	rest    [][]byte // to be flushed
}

type fakeDeath struct {
	once sync.Once
	c    chan struct{}
}

func newFakeCarriers() (a, b *fakeCarrier) {
	x, y, dead := make(chan []byte, 16), make(chan []byte, 16), &fakeDeath{c: make(chan struct{})}
	return &fakeCarrier{in: x, out: y, dead: dead}, &fakeCarrier{in: y, out: x, dead: dead}
}

func (c *fakeCarrier) ReadMessage(p []byte) (int, error) {
	select { // what was sent before the end arrives
	case m := <-c.in:
		return copy(p, m), nil
	default:
	}
	select {
	case m := <-c.in:
		return copy(p, m), nil
	case <-c.dead.c:
		return 0, net.ErrClosed
	}
}

func (c *fakeCarrier) WriteMessages(v ...[]byte) (sent bool, err error) {
	c.rest = v
	return false, nil
}

func (c *fakeCarrier) Flush() error {
	for _, p := range c.rest {
		select {
		case c.out <- append([]byte(nil), p...):
		case <-c.dead.c:
			return net.ErrClosed
		}
	}
	return nil
}

func (c *fakeCarrier) Close(string) error  { c.Abort(nil); return nil }
func (c *fakeCarrier) Abort(error)         { c.dead.once.Do(func() { close(c.dead.c) }) }
func (c *fakeCarrier) Secure() bool        { return false }
func (c *fakeCarrier) RemoteAddr() string  { return "memory" }
func (c *fakeCarrier) SetUnsentLimit(int)  {}
func (c *fakeCarrier) OnIdle(func())       {}
func (c *fakeCarrier) AwaitMessage() error { return nil } // ReadMessage does

// end is one end of a real session.
type end struct {
	*mux.Session
	link *link.Link
}

// newSessions is a session over a carrier in memory.
func newSessions(t testing.TB) (client, server end) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	opened, release := make(chan end, 1), make(chan struct{})
	registry := link.NewRegistry(link.RegistryConfig{Open: func(l *link.Link, _, _ string) {
		s, err := mux.Server(l, mux.Config{})
		if err != nil {
			t.Error(err)
		}
		opened <- end{s, l}
		<-release
		s.Close("test ends", 0)
	}})
	l := link.New(link.Config{})
	s, err := mux.Client(l, mux.Config{})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		l.Maintain(ctx, link.Redial{Dial: func(_ context.Context, hello []byte) (link.Carrier, []byte, error) {
			near, far := newFakeCarriers()
			reply, attach, _, err := registry.Admit("alice", "memory", false, hello)
			if err != nil {
				return nil, nil, err
			}
			attach(far)
			return near, reply, nil
		}})
	})
	t.Cleanup(func() {
		s.Close("test ends", 0)
		close(release)
		cancel()
		running.Wait()
		registry.Stop()
		registry.Wait()
	})
	return end{s, l}, within(t, opened, "session at the server")
}

// The end whose streams are over does not close the session while the other
// still passes on what it has received.
func TestDrainWaitsForBothEnds(t *testing.T) {
	for _, who := range []string{"client", "server", "both"} {
		t.Run(who+" stops", func(t *testing.T) {
			told, teller := newSessions(t)
			if who == "client" {
				told, teller = teller, told
			}
			st, err := told.Open(t.Context(), mux.Header{Kind: mux.KindForward, Target: "1"})
			if err != nil {
				t.Fatal(err)
			}
			far, err := teller.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			far.Accept()
			teller.GoAway("stopping")
			within(t, told.PeerGoingAway(), "notice")
			if who == "both" { // at the same moment: neither takes the other's word for an answer
				told.GoAway("stopping, too")
				within(t, teller.PeerGoingAway(), "notice")
			}
			var running sync.WaitGroup
			defer running.Wait()
			for _, e := range []end{told, teller} {
				running.Go(func() {
					drain(t.Context(), e.Session, e.link, e == told && who != "both")
					closeSession(e.Session, e.link, "drained")
				})
			}

			// The told end is done with the stream; the teller has not read it.
			data := make([]byte, 100<<10)
			st.Write(data)
			st.CloseWrite()
			far.CloseWrite()
			if _, err := io.Copy(io.Discard, st); err != nil {
				t.Fatal(err)
			}
			select {
			case <-teller.PeerHasNoStreams():
			case <-teller.Done():
				t.Fatal("session closed under the stream")
			}
			if b, err := io.ReadAll(far); len(b) != len(data) || err != nil {
				t.Errorf("%d bytes arrived, %v", len(b), err)
			}
			within(t, teller.Done(), "end of the session")
			within(t, told.Done(), "end of the session")
		})
	}
}

// Without a carrier and without streams there is nothing to wait for.
func TestDrainDetached(t *testing.T) {
	l := link.New(link.Config{})
	s, err := mux.Client(l, mux.Config{})
	if err != nil {
		t.Fatal(err)
	}
	drain(t.Context(), s, l, false)
	closeSession(s, l, "never opened")
	l.Wait()
}
