package link

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

// gated is a recorder that lets the test hold its calls.
type gated struct {
	*recorder
	hold    bool          // calls wait
	pass    chan struct{} // for this
	partly  bool          // WriteMessages leaves something to Flush
	lost    error         // what WriteMessages fails with
	calls   []string      // that have begun
	message []byte        // as the last WriteMessages was given it
}

func newGated() *gated {
	return &gated{recorder: &recorder{Carrier: linktest.NewPipe(8, false).Client}, pass: make(chan struct{})}
}

func (g *gated) begin(call string) {
	g.calls = append(g.calls, call)
	if g.hold {
		<-g.pass
	}
}

func (g *gated) WriteMessages(v ...[]byte) (sent bool, err error) {
	g.message = v[0]
	partly, lost := g.partly, g.lost
	_, err = g.recorder.WriteMessages(v...)
	g.begin("write")
	if lost != nil {
		err = lost
	}
	return !partly && err == nil, err
}

func (g *gated) Flush() error {
	g.begin("flush")
	return nil
}

// letPass ends the wait of one call.
func (g *gated) letPass() {
	g.pass <- struct{}{}
	synctest.Wait()
}

// riding runs f with a link on a carrier that has said what was received.
func riding(t *testing.T, f func(t *testing.T, l *Link, att *attachment, g *gated)) {
	bubble.Test(t, func(t *testing.T) {
		l, g := New(Config{}), newGated()
		att, _, err := l.attach(g, terms{maxMessage: MaxMessage, checksum: true})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		g.calls = nil
		f(t, l, att, g)
		l.abandon(ErrClosed)
		l.Wait()
	})
}

func appendText(t *testing.T, l *Link, text string) {
	t.Helper()
	if err := l.Append([][]byte{[]byte(text)}); err != nil {
		t.Fatal(err)
	}
}

// Who sends does it himself, and nobody needs to wake up for it.
func TestSendAtOnce(t *testing.T) {
	riding(t, func(t *testing.T, l *Link, att *attachment, g *gated) {
		appendText(t, l, "appended")
		if len(g.data) > 0 {
			t.Errorf("%q sent before Send", g.data)
		}
		l.Send()
		if string(g.data) != "appended" { // read without a lock, for the race detector
			t.Errorf("%q sent when Send returned", g.data)
		}
		l.Send()
		synctest.Wait()
		if want := []string{"write"}; !slices.Equal(g.calls, want) {
			t.Errorf("calls %v, want %v", g.calls, want)
		}
	})
}

// What others append while somebody sends leaves too: with his next batch, and
// after that, since he must not be kept, with the writer's. Their Send does not
// wait.
func TestSendForOthers(t *testing.T) {
	riding(t, func(t *testing.T, l *Link, att *attachment, g *gated) {
		g.hold = true
		appendText(t, l, "1")
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			l.Send()
		}()
		synctest.Wait()
		for i, text := range []string{"2", "3"} {
			appendText(t, l, text)
			l.Send()
			synctest.Wait()
			if len(g.calls) != i+1 {
				t.Fatalf("calls %v, want %d", g.calls, i+1)
			}
			select {
			case <-returned:
				t.Errorf("Send returned after %d batches, want 2", i)
			default:
			}
			g.letPass()
		}
		<-returned
		if string(g.data) != "123" || len(g.calls) != 3 {
			t.Errorf("%q sent with %v, want everything with 3 writes", g.data, g.calls)
		}
		g.letPass()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.out.unsent > 0 || att.sending {
			t.Errorf("%d bytes unsent, sending %v", l.out.unsent, att.sending)
		}
	})
}

// A carrier that has not taken everything is given nothing more before Flush has
// returned, and the messages stay as they are until then.
func TestSendAfterFlush(t *testing.T) {
	riding(t, func(t *testing.T, l *Link, att *attachment, g *gated) {
		g.partly = true
		g.flushHeld(t, l, "first")
		want := bytes.Clone(g.message)

		// The peer has it all the same, by a delay of the carrier's: the outbox
		// lets go of its slab, and may use another piece of memory only.
		if _, err := l.receive(att, message{kind: typeData, ack: 5}); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		if s := att.batch.slabs[0]; s == nil || s.refs != 1 {
			t.Errorf("slab %p is not kept for the carrier", s)
		}
		l.mu.Unlock()
		for range 3 {
			appendText(t, l, "later")
			l.Send()
			synctest.Wait()
		}
		if !bytes.Equal(g.message, want) {
			t.Errorf("message %x while it is flushed, want %x", g.message, want)
		}
		if want := []string{"write", "flush"}; !slices.Equal(g.calls, want) {
			t.Errorf("calls %v, want %v and none before it returns", g.calls, want)
		}
		g.partly, g.hold = false, false
		g.letPass()
		if want := []string{"write", "flush", "write"}; !slices.Equal(g.calls, want) {
			t.Errorf("calls %v, want %v", g.calls, want)
		}
		if string(g.data) != "firstlaterlaterlater" {
			t.Errorf("%q sent", g.data)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if att.batch.slabs[0] != nil || att.sending || att.blocked {
			t.Error("the batch is still in use")
		}
	})
}

// flushHeld sends text, and has the writer wait in Flush.
func (g *gated) flushHeld(t *testing.T, l *Link, text string) {
	t.Helper()
	g.hold = true
	appendText(t, l, text)
	go l.Send()
	synctest.Wait()
	g.letPass() // of WriteMessages
	if want := []string{"write", "flush"}; !slices.Equal(g.calls, want) {
		t.Fatalf("calls %v, want %v", g.calls, want)
	}
}

// A carrier that is lost while somebody sends is waited for, whatever comes of
// the write, before the next is used; that sends everything which the peer lacks.
func TestSendOnLostCarrier(t *testing.T) {
	cut := errors.New("cut")
	for _, tt := range []struct {
		partly bool
		err    error
	}{{}, {partly: true}, {err: cut}} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			riding(t, func(t *testing.T, l *Link, att *attachment, g *gated) {
				g.hold, g.partly, g.lost = true, tt.partly, tt.err
				appendText(t, l, "under way")
				go l.Send()
				synctest.Wait()
				l.lose(att, cut)
				appendText(t, l, " and later")
				l.Send()

				next := newGated()
				attached := make(chan error, 1)
				go func() {
					_, _, err := l.attach(next, terms{maxMessage: MaxMessage, checksum: true})
					attached <- err
				}()
				synctest.Wait()
				if len(attached) > 0 || len(next.calls) > 0 {
					t.Fatal("the next carrier is used while the former is")
				}
				g.letPass()
				if tt.partly {
					if want := []string{"write", "flush"}; !slices.Equal(g.calls, want) {
						t.Fatalf("calls %v, want %v", g.calls, want)
					}
					if len(attached) > 0 {
						t.Error("the next carrier is used while the former is flushed")
					}
					g.letPass()
				}
				select {
				case err := <-attached:
					if err != nil {
						t.Fatal(err)
					}
				default:
					t.Fatal("the next carrier waits for ever")
				}
				synctest.Wait()
				if string(next.data) != "under way and later" {
					t.Errorf("%q sent on the next carrier", next.data)
				}
				if string(g.data) != "under way" {
					t.Errorf("%q sent on the former", g.data)
				}
			})
		})
	}
}

// A link that ends while somebody sends does not wait for ever either.
func TestEndWhileSending(t *testing.T) {
	riding(t, func(t *testing.T, l *Link, att *attachment, g *gated) {
		g.hold, g.partly = true, true
		appendText(t, l, "x")
		go l.Send()
		synctest.Wait()
		l.abandon(ErrClosed)
		ended := make(chan struct{})
		go func() { l.Wait(); close(ended) }()
		g.letPass()
		if want := []string{"write", "flush"}; !slices.Equal(g.calls, want) {
			t.Fatalf("calls %v, want %v", g.calls, want)
		}
		g.letPass()
		<-ended
	})
}

// Before the reader waits, it acknowledges what came, unless it was little: that
// waits 20 ms for more.
func TestAcknowledgeBeforeWaiting(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l, pipe := New(Config{}), linktest.NewPipe(8, false)
		handle(l, nil)
		g := &gated{recorder: &recorder{Carrier: pipe.Client}}
		if _, _, err := l.attach(g, terms{maxMessage: MaxMessage, checksum: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it says what it has received
		offset := 0
		// come has n bytes arrive and returns how many of them are acknowledged.
		come := func(n int) int {
			synctest.Wait()
			l.mu.Lock()
			l.ackPace.bytes = maxAck // that alone would let it wait
			l.mu.Unlock()
			m := make([]byte, headerSize+n, headerSize+n+trailerSize)
			putHeader(m, typeData, uint64(offset), 0)
			offset += n
			if _, err := pipe.Server.WriteMessages(seal(m, true)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			return int(l.ackSent) - (offset - n)
		}
		for _, n := range []int{minAck, 16 << 10, 100 << 10} {
			writes := len(g.calls)
			if got := come(n); got != n || len(g.calls)-writes > 2 {
				t.Errorf("%d of %d bytes acknowledged before the wait", got, n)
			}
		}
		for _, n := range []int{1, minAck - 1} {
			if got := come(n); got > 0 {
				t.Errorf("%d of %d bytes acknowledged at once", got, n)
			}
			writes := len(g.calls)
			time.Sleep(ackDelay - time.Nanosecond)
			synctest.Wait()
			l.mu.Lock() // for the race detector: the timer's goroutine knows nothing of us
			early := len(g.calls) > writes
			l.mu.Unlock()
			if early {
				t.Errorf("%d bytes acknowledged before %v", n, ackDelay)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			l.mu.Lock()
			if int(l.ackSent) != offset || len(g.calls) != writes+1 {
				t.Errorf("%d bytes not acknowledged after %v", n, ackDelay)
			}
			l.mu.Unlock()
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}
