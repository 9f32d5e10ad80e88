package mux

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// testListener is a Listener that the test ends.
type testListener struct {
	addr  string
	ended chan *Error
	close func()
}

func newListener(addr string, stopped func()) testListener {
	return testListener{addr, make(chan *Error, 1), sync.OnceFunc(stopped)}
}

func (l testListener) Addr() string         { return l.addr }
func (l testListener) Ended() <-chan *Error { return l.ended }
func (l testListener) Close()               { l.close() }

// The client's forwards, and what a server does not expect.
func TestListenRecords(t *testing.T) {
	p := newPeer(t, Client, Config{})
	type answer struct {
		Forward
		err error
	}
	listen := func(ctx context.Context) <-chan answer {
		c := make(chan answer, 1)
		go func() {
			f, err := p.s.Listen(ctx, "127.0.0.1:0")
			c <- answer{f, err}
		}()
		return c
	}
	asked := func(id uint32) frame { return onControl(record{kind: recordListen, id: id, reason: "127.0.0.1:0"}) }
	unlisten := func(id uint32) frame { return onControl(record{kind: recordUnlisten, id: id}) }
	ended := func(id uint32) frame {
		return onControl(record{kind: recordListenEnded, id: id, code: Denied, reason: "policy"})
	}

	first := listen(t.Context())
	p.want(asked(1))
	for range 3 { // more often than anybody takes
		p.say(onControl(record{kind: recordListening, id: 1, reason: "127.0.0.1:7"}))
	}
	one := <-first
	if one.Number != 1 || one.Address != "127.0.0.1:7" || one.err != nil {
		t.Errorf("first forward: %+v", one)
	}
	second := listen(t.Context())
	p.want(asked(2))
	p.say(onControl(record{kind: recordListenFailed, id: 2, code: Denied, reason: "no"}))
	if got := <-second; CodeOf(got.err) != Denied || got.err.Error() != "denied: no" {
		t.Errorf("second forward: %+v, want denied", got)
	}
	p.s.Unlisten(2) // there is none
	ctx, cancel := context.WithCancel(t.Context())
	third := listen(ctx)
	p.want(asked(3))
	cancel()
	if got := <-third; !errors.Is(got.err, context.Canceled) {
		t.Errorf("third forward: %+v, want the context's end", got)
	}
	p.want(unlisten(3))
	p.say(onControl(record{kind: recordListenFailed, id: 3, code: Cancelled}), ended(3)) // late
	for range 2 {
		p.say(ended(1))
	}
	if e := <-one.Ended; *e != (Error{Denied, "policy"}) {
		t.Errorf("the first forward ended with %v", e)
	}
	p.s.Unlisten(1) // it has ended
	fourth := listen(t.Context())
	p.want(asked(4))
	p.say(onControl(record{kind: recordListening, id: 4, reason: "127.0.0.1:8"}))
	<-fourth
	for range 2 {
		p.s.Unlisten(4)
	}
	p.want(unlisten(4))
	fifth := listen(t.Context())
	p.want(asked(5))
	p.say(frame{framePSH, controlID, "\x63\x00\x02??"}) // a record of a later version
	p.s.Close("over", 0)
	if got := <-fifth; CodeOf(got.err) != SessionLost {
		t.Errorf("fifth forward: %+v, want session lost", got)
	}
}

// listening is a server whose listeners the test makes and ends.
type listening struct {
	*peer
	opening chan *opening
	closed  chan string
}

// opening is a call of Config.Listen.
type opening struct {
	ctx    context.Context
	bind   string
	answer chan error
	made   testListener
}

func newListening(t *testing.T) *listening {
	l := &listening{opening: make(chan *opening, 100), closed: make(chan string, 100)}
	l.peer = newPeer(t, Server, Config{Listen: func(ctx context.Context, _ uint32, bind string) (Listener, error) {
		o := &opening{ctx: ctx, bind: bind, answer: make(chan error), made: newListener("at "+bind, func() { l.closed <- bind })}
		l.opening <- o
		if err := <-o.answer; err != nil {
			return nil, err
		}
		return o.made, nil
	}})
	return l
}

func (l *listening) ask(id uint32, bind string) {
	l.say(onControl(record{kind: recordListen, id: id, reason: bind}))
}
func (l *listening) unlisten(id uint32) { l.say(onControl(record{kind: recordUnlisten, id: id})) }

// binds expects that the server is about to listen at bind, and lets it.
func (l *listening) binds(bind string, err error) *opening {
	l.t.Helper()
	o := <-l.opening
	if o.bind != bind {
		l.t.Errorf("listens at %q, want %q", o.bind, bind)
	}
	o.answer <- err
	return o
}

func (l *listening) listens(id uint32, bind string) {
	l.t.Helper()
	l.want(onControl(record{kind: recordListening, id: id, reason: "at " + bind}))
}

func (l *listening) fails(id uint32, code Code, reason string) {
	l.t.Helper()
	l.want(onControl(record{kind: recordListenFailed, id: id, code: code, reason: reason}))
}

func (l *listening) stops(bind string) {
	l.t.Helper()
	if got := <-l.closed; got != bind {
		l.t.Errorf("the listener at %q was closed, want that at %q", got, bind)
	}
}

// Each request of a client to listen gets one answer, whatever else it says of the same
// number, and a listener that it has given up never stays.
func TestListenServer(t *testing.T) {
	inUse := &Error{Refused, "address in use"}
	const taken, withdrawn = "the number of the forward is in use", "not wanted any more"

	t.Run("used twice", func(t *testing.T) {
		l := newListening(t)
		l.ask(1, "a")
		l.ask(1, "b")
		l.fails(1, Protocol, taken)
		l.binds("a", nil)
		l.listens(1, "a")
		l.ask(1, "c")
		l.fails(1, Protocol, taken)
		for range 2 {
			l.unlisten(1)
		}
		l.stops("a")
	})
	t.Run("failed", func(t *testing.T) {
		l := newListening(t)
		l.ask(1, "a")
		l.binds("a", inUse)
		l.fails(1, Refused, "address in use")
		l.unlisten(1)
		l.ask(1, "a")
		l.binds("a", errors.New("unknown"))
		l.fails(1, Internal, "unknown")
	})
	t.Run("given up while it is bound", func(t *testing.T) {
		for _, err := range []error{nil, inUse} {
			l := newListening(t)
			l.ask(1, "a")
			o := <-l.opening
			l.unlisten(1)
			<-o.ctx.Done()
			l.settled()
			l.ask(1, "b") // waits
			l.ask(1, "c")
			l.fails(1, Protocol, taken)
			l.unlisten(1)
			l.fails(1, Cancelled, withdrawn)
			l.ask(1, "d")
			o.answer <- err
			if err != nil {
				l.fails(1, Refused, "address in use")
			} else {
				l.fails(1, Cancelled, withdrawn)
				l.stops("a")
			}
			l.binds("d", nil)
			l.listens(1, "d")
		}
	})
	t.Run("again and again", func(t *testing.T) {
		l := newListening(t)
		for i := range 50 {
			bind := fmt.Sprint(i)
			l.ask(1, bind)
			l.binds(bind, nil)
			l.listens(1, bind)
			l.unlisten(1)
			l.stops(bind)
		}
	})
	t.Run("ended by the server", func(t *testing.T) {
		l := newListening(t)
		l.ask(1, "a")
		o := l.binds("a", nil)
		l.listens(1, "a")
		o.made.ended <- &Error{Denied, "the policy has changed"}
		l.want(onControl(record{kind: recordListenEnded, id: 1, code: Denied, reason: "the policy has changed"}))
		l.stops("a")
		l.unlisten(1) // on its way meanwhile
		l.ask(1, "b")
		l.binds("b", nil)
		l.listens(1, "b")
	})
	t.Run("end of the session", func(t *testing.T) {
		l := newListening(t)
		l.ask(1, "a")
		l.binds("a", nil)
		l.listens(1, "a")
		l.ask(2, "b")
		o := <-l.opening
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			l.s.Close("over", 0)
		}()
		<-o.ctx.Done()
		l.stops("a")
		o.answer <- nil
		l.stops("b")
		<-ended
	})
	t.Run("many", func(t *testing.T) {
		l := newListening(t)
		for id := range uint32(DefaultMaxForwards) {
			l.ask(id, "a")
		}
		l.ask(DefaultMaxForwards, "a")
		l.fails(DefaultMaxForwards, Limit, "too many forwards in this session")
		for range DefaultMaxForwards {
			l.binds("a", inUse)
			l.next()
		}
	})

	p := newPeer(t, Server, Config{})
	p.say(onControl(record{kind: recordListen, id: 1, reason: "a"}))
	p.want(onControl(record{kind: recordListenFailed, id: 1, code: Denied, reason: "this end does not listen for others"}))
}
