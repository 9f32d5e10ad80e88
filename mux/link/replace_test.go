package link

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

// rotation counts what Maintain says about replacements.
type rotation struct {
	mu       sync.Mutex
	replaced int
	failed   []error
}

// every is a Redial that replaces each carrier after age.
func (r *rotation) every(age time.Duration) Redial {
	return Redial{
		ReplaceAfter: func(Carrier) time.Duration { return age },
		Replaced: func(Carrier) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.replaced++
		},
		NotReplaced: func(err error, _ time.Duration) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.failed = append(r.failed, err)
		},
	}
}

func (r *rotation) count() (replaced int, failed []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replaced, slices.Clone(r.failed)
}

// A carrier is replaced ahead of its time, neither end takes that for a loss, and
// the old one is closed when both have read it to its end.
func TestReplace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.say(e.client, e.server, "before")
		old := e.pipe()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n, failed := r.count(); n != 1 || len(failed) > 0 {
			t.Fatalf("%d carriers replaced, failures %v; want one and none", n, failed)
		}
		e.say(e.client, e.server, "after")
		e.say(e.server, e.client, "back")
		if _, err := old.Client.ReadMessage(make([]byte, MaxMessage)); err == nil || errors.Is(err, ErrDisplaced) {
			t.Errorf("the old carrier ended with %v, want a close", err)
		}
		if e.client.leaving != nil || e.server.leaving != nil {
			t.Error("the old carrier is still being left")
		}
		if len(e.lost) > 0 || len(e.resumed) != 1 {
			t.Errorf("lost %v, attached %v", e.lost, e.resumed)
		}
	})
}

// What is under way on the old carrier, in either direction, arrives on it, and
// before what follows on the new one. It is sent once.
func TestReplaceKeepsTheOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.say(e.client, e.server, "x")
		time.Sleep(9 * time.Second)
		old := e.pipe()
		old.Hold(true, true)
		old.Hold(false, true)
		e.client.Write([]byte("up-old "))
		e.server.Write([]byte("down-old "))
		time.Sleep(time.Second)
		synctest.Wait()
		if e.pipe() == old {
			t.Fatal("the carrier was not replaced")
		}
		again := 0
		for _, up := range []bool{true, false} {
			e.pipe().Filter(up, func(m []byte) [][]byte {
				if bytes.Contains(m, []byte("old")) {
					again++
				}
				return [][]byte{m}
			})
		}
		e.client.Write([]byte("up"))
		e.server.Write([]byte("down"))
		time.Sleep(time.Second)
		old.Hold(true, false)
		old.Hold(false, false)
		e.hear(e.server, "up-old up")
		e.hear(e.client, "down-old down")
		if again > 0 {
			t.Error("what went over the old carrier was sent again")
		}
		if len(e.lost) > 0 {
			t.Errorf("lost %v", e.lost)
		}
	})
}

// A server that does not leave the old carrier gently sends again what may be
// lost. It may have acknowledged more since it said what it has.
func TestReplaceNotGently(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.say(e.client, e.server, "before")
		e.say(e.server, e.client, "and back")
		time.Sleep(9 * time.Second)
		e.mu.Lock()
		e.answer = func(r *reply) { r.beside, r.received = false, r.received-1 }
		e.mu.Unlock()
		time.Sleep(2 * time.Second)
		e.say(e.client, e.server, "after")
		e.say(e.server, e.client, "and back")
		if n, failed := r.count(); n != 1 || len(failed) > 0 {
			t.Errorf("%d carriers replaced, failures %v", n, failed)
		}
	})
}

// While the replacement cannot be dialled the old carrier goes on, and the dials
// become rarer.
func TestReplaceFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.setRefuse(errors.New("no route"))
		time.Sleep(10*time.Second + time.Minute)
		synctest.Wait()
		if n, failed := r.count(); n != 0 || len(failed) < 5 || len(failed) > 30 {
			t.Errorf("%d carriers replaced, %d failures", n, len(failed))
		}
		e.say(e.client, e.server, "still there")
		e.setRefuse(nil)
		time.Sleep(time.Minute)
		if n, _ := r.count(); n == 0 {
			t.Error("not replaced after it could be")
		}
		if len(e.lost) > 0 {
			t.Errorf("lost %v", e.lost)
		}
	})
}

// A carrier that dies while it is being left costs a resume, and no byte.
func TestLostWhileLeft(t *testing.T) {
	for name, cut := range map[string]func(old *linktest.Pipe){
		"cut":       (*linktest.Pipe).Cut,
		"unnoticed": (*linktest.Pipe).CutUnnoticed,
		"silent":    func(*linktest.Pipe) {}, // held for ever
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var r rotation
				e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
				e.say(e.client, e.server, "x")
				time.Sleep(9 * time.Second)
				old := e.pipe()
				old.Hold(true, true)
				old.Hold(false, true)
				e.client.Write([]byte("up"))
				e.server.Write([]byte("down"))
				time.Sleep(time.Second)
				synctest.Wait()
				start := time.Now()
				cut(old)
				e.hear(e.server, "up")
				e.hear(e.client, "down")
				if took := time.Since(start); took > leaveSilence+time.Second {
					t.Errorf("that took %v", took)
				}
				e.say(e.client, e.server, "and on")
			})
		})
	}
}

// A peer that says its last and does not come with another carrier is lost.
func TestLastWithoutNext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "x")
		e.setRefuse(errors.New("no route"))
		b := make([]byte, headerSize, headerSize+trailerSize)
		putHeader(b, typeLast, 1, 0)
		if _, err := e.pipe().Client.WriteMessages(seal(b, true)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !e.server.Attached() {
			t.Error("lost at once")
		}
		time.Sleep(leaveSilence)
		synctest.Wait()
		if e.server.Attached() {
			t.Error("still attached")
		}
	})
}

// A Close right after a replacement loses nothing that is under way on the old
// carrier.
func TestCloseWhileLeaving(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.say(e.client, e.server, "x")
		time.Sleep(9 * time.Second)
		old := e.pipe()
		old.Hold(true, true)
		e.client.Write([]byte("up"))
		time.Sleep(time.Second)
		synctest.Wait()
		time.AfterFunc(time.Second/2, func() { old.Hold(true, false) })
		e.client.Close("done")
		e.hear(e.server, "up")
		<-e.server.Done()
		var closed *ClosedByPeerError
		if err := e.server.Err(); !errors.As(err, &closed) {
			t.Errorf("the server's end: %v", err)
		}
	})
}

// Wake ends the pause before the next dial, and a dial that leads nowhere.
func TestWake(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connectAs(t, Config{ResumeWindow: time.Hour}, Config{ResumeWindow: time.Hour}, Redial{Min: time.Hour, Max: time.Hour})
		e.say(e.client, e.server, "x")
		e.setRefuse(errors.New("no route"))
		e.pipe().Cut()
		time.Sleep(time.Second) // one attempt at once, the next one in up to an hour
		e.setRefuse(nil)
		start := time.Now()
		e.client.Wake()
		e.say(e.client, e.server, "y")
		if took := time.Since(start); took != 0 {
			t.Errorf("resumed after %v, want at once", took)
		}

		e.hang()
		e.pipe().Cut()
		synctest.Wait()
		e.setRefuse(nil)
		e.client.Wake()
		e.say(e.client, e.server, "z")
		if took := time.Since(start); took != 0 {
			t.Errorf("a dial that hangs was not restarted: %v", took)
		}
	})
}

// A server that asks to be left alone for some time is, also while a carrier is to be
// replaced.
func TestReplaceRetryAfter(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const asked = time.Minute
		var r rotation
		redial := r.every(10 * time.Second)
		redial.RetryAfter = func(error) time.Duration { return asked }
		var pauses []time.Duration
		failed := redial.NotReplaced
		redial.NotReplaced = func(err error, next time.Duration) {
			pauses = append(pauses, next)
			failed(err, next)
		}
		e := connectAs(t, Config{}, Config{}, redial)
		e.say(e.client, e.server, "x")
		e.setRefuse(errors.New("busy"))
		time.Sleep(10*time.Second + 3*asked - time.Second)
		synctest.Wait()
		if _, failed := r.count(); len(failed) != 3 {
			t.Errorf("%d attempts to replace the carrier in three minutes, want 3", len(failed))
		}
		for _, p := range pauses {
			if p < asked {
				t.Errorf("the next attempt is announced in %v, want %v at least", p, asked)
			}
		}
		e.say(e.client, e.server, "y") // the old carrier goes on
	})
}

// A carrier is not replaced while the one before it is still being left, at either end:
// what is under way on it would be lost.
func TestReplaceWhileLeaving(t *testing.T) {
	for name, up := range map[string]bool{"at the server": true, "at the client": false} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var r rotation
				e := connectAs(t, Config{}, Config{}, r.every(2*time.Second))
				e.say(e.client, e.server, "x")
				first := e.pipe()
				first.Hold(up, true) // one end does not read the other's last
				time.Sleep(2 * time.Second)
				synctest.Wait()
				second := e.pipe()
				if second == first {
					t.Fatal("not replaced")
				}
				second.Hold(true, true)
				second.Hold(false, true)
				e.client.Write([]byte("up"))
				e.server.Write([]byte("down"))
				time.Sleep(leaveSilence - time.Second/2) // the second one is due now
				if n, _ := r.count(); n != 1 {
					t.Errorf("replaced %d times, want once", n)
				}
				first.Hold(up, false)
				second.Hold(true, false)
				second.Hold(false, false)
				e.hear(e.server, "up")
				e.hear(e.client, "down")
				time.Sleep(3 * time.Second)
				if n, _ := r.count(); n < 2 {
					t.Error("not replaced any more")
				}
				e.say(e.client, e.server, "and on")
				e.mu.Lock()
				defer e.mu.Unlock()
				if len(e.lost) > 0 || len(e.resumed) != 1 {
					t.Errorf("lost %v, attached %v", e.lost, e.resumed)
				}
			})
		})
	}
}

// A carrier on which nothing passes after the handshake does not take the place of one
// that works.
func TestReplaceByMute(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		e := connectAs(t, Config{}, Config{}, r.every(10*time.Second))
		e.say(e.client, e.server, "x")
		working := e.pipe()
		e.mute(true)
		time.Sleep(11 * time.Second)
		if e.pipe() == working {
			t.Fatal("no attempt to replace it")
		}
		e.say(e.client, e.server, "up")
		e.say(e.server, e.client, "down")
		time.Sleep(proveTime)
		if n, failed := r.count(); n != 0 || len(failed) == 0 || !errors.Is(failed[0], ErrMute) {
			t.Errorf("%d carriers replaced, failures %v", n, failed)
		}
		e.say(e.client, e.server, "still there")
		e.mute(false)
		time.Sleep(time.Minute)
		if n, _ := r.count(); n == 0 {
			t.Error("not replaced after it could be")
		}
		if len(e.lost) > 0 {
			t.Errorf("lost %v", e.lost)
		}
	})
}

// The peer waits for a message on the next carrier: what is said last on the old one does
// not take its place.
func TestFirstMessageIsSent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := New(Config{})
		handle(l, nil)
		attach := func(gentle bool) (*attachment, *linktest.Pipe) {
			p := linktest.NewPipe(8, false)
			att, _, err := l.attach(p.Client, terms{maxMessage: MaxMessage, checksum: true, gentle: gentle})
			if err != nil {
				t.Fatal(err)
			}
			return att, p
		}
		old, _ := attach(false)
		synctest.Wait()
		l.mu.Lock()
		old.sending = true // somebody else is just sending
		l.mu.Unlock()
		_, next := attach(true)
		l.mu.Lock()
		l.fill(old)
		if old.sending = false; !l.ackDue {
			t.Error("nothing will be said on the next carrier")
		}
		l.work.Broadcast()
		l.mu.Unlock()
		if n, err := next.Server.ReadMessage(make([]byte, MaxMessage)); err != nil || n < headerSize {
			t.Errorf("%d bytes, %v", n, err)
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}

// A carrier is judged anew when the network has changed.
func TestWakeAsksReplaceAfter(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var r rotation
		redial := r.every(0)
		var after atomic.Int64
		after.Store(int64(time.Hour))
		redial.ReplaceAfter = func(Carrier) time.Duration { return time.Duration(after.Load()) }
		e := connectAs(t, Config{}, Config{}, redial)
		e.say(e.client, e.server, "x")
		after.Store(int64(time.Second))
		time.Sleep(time.Minute)
		if n, _ := r.count(); n != 0 {
			t.Errorf("%d carriers replaced", n)
		}
		e.client.Wake()
		time.Sleep(1100 * time.Millisecond)
		if n, _ := r.count(); n != 1 {
			t.Errorf("%d carriers replaced after Wake, want one", n)
		}
	})
}
