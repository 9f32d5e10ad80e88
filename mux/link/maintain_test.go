package link

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

// The first attempt after a carrier that was good for something is made at once.
func TestRedialAtOnce(t *testing.T) {
	tests := []struct {
		name string
		ride func(e *ends)
		once bool
	}{
		{"sent", func(e *ends) { e.say(e.client, e.server, "x"); time.Sleep(time.Second) }, true},
		{"received", func(e *ends) { e.pipe().Hold(true, true); e.say(e.server, e.client, "x") }, true},
		{"lasted", func(*ends) { time.Sleep(5 * time.Second) }, true},
		{"neither", func(*ends) { time.Sleep(4 * time.Second) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := connect(t, Config{}, Config{})
				test.ride(e)
				e.setRefuse(errors.New("no route"))
				e.pipe().Cut()
				synctest.Wait()
				e.mu.Lock()
				defer e.mu.Unlock()
				if len(e.pauses) == 0 || (e.pauses[0] == 0) != test.once {
					t.Errorf("first pause of %v, at once: want %v", e.pauses, test.once)
				}
			})
		})
	}
}

// The pause between attempts differs from time to time.
func TestJitter(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var pauses []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		err := New(Config{}).Maintain(ctx, Redial{
			Min: time.Second, Max: time.Second,
			Dial: func(context.Context, []byte) (Carrier, []byte, error) { return nil, nil, errors.New("no route") },
			Lost: func(_ error, next time.Duration) {
				if pauses = append(pauses, next); len(pauses) == 200 {
					cancel()
				}
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Maintain: %v, want the context's end", err)
		}
		var quarters [4]int
		for _, p := range pauses {
			quarters[min(3, p/(time.Second/4))]++
		}
		for i, n := range quarters {
			if n < 20 {
				t.Errorf("%d of 200 pauses in quarter %d of the second, want about 50", n, i+1)
			}
		}
	})
}

// Maintain returns as soon as the link or its context ends, whatever it is about;
// the context does not end the link.
func TestMaintainReturns(t *testing.T) {
	refuse := func(context.Context, []byte) (Carrier, []byte, error) { return nil, nil, errors.New("no route") }
	hang := func(ctx context.Context, _ []byte) (Carrier, []byte, error) {
		<-ctx.Done()
		return nil, nil, context.Cause(ctx)
	}
	attach := func(context.Context, []byte) (Carrier, []byte, error) {
		return linktest.NewPipe(8, false).Client, reply{maxMessage: MaxMessage}.encode(), nil
	}
	for name, dial := range map[string]Dial{"pause": refuse, "dial": hang, "ride": attach} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				l := New(Config{})
				defer func() { l.abandon(ErrClosed); l.Wait() }()
				stopped := errors.New("stopped")
				ends := []struct {
					name string
					end  func(cancel context.CancelCauseFunc)
					want error
				}{
					{"context", func(cancel context.CancelCauseFunc) { cancel(stopped) }, stopped},
					{"link", func(context.CancelCauseFunc) { l.abandon(ErrExpired) }, ErrExpired},
				}
				for _, test := range ends {
					if name == "ride" && test.name == "context" {
						continue // its carrier goes on, and Maintain waits for it
					}
					ctx, cancel := context.WithCancelCause(t.Context())
					maintained := make(chan error, 1)
					go func() { maintained <- l.Maintain(ctx, Redial{Dial: dial, Min: time.Hour, Max: time.Hour}) }()
					synctest.Wait()
					if err := l.Err(); err != nil {
						t.Fatalf("the link ended with %v", err)
					}
					start := time.Now()
					test.end(cancel)
					if err := <-maintained; !errors.Is(err, test.want) || !time.Now().Equal(start) {
						t.Errorf("end of the %s: %v after %v, want %v at once", test.name, err, time.Since(start), test.want)
					}
					cancel(nil)
				}
			})
		})
	}
}

// An answer that says something impossible ends its carrier only.
func TestBadReply(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*reply)
		want error
	}{
		"small messages":  {func(r *reply) { r.maxMessage = 1 }, ErrMalformed},
		"another session": {func(r *reply) { r.resumed = false }, ErrProtocol},
		"never sent":      {func(r *reply) { r.received = 1 << 40 }, ErrProtocol},
		"acknowledged":    {func(r *reply) { r.received = 0 }, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := connect(t, Config{}, Config{})
				e.say(e.client, e.server, "x")
				if err := e.client.Flush(nil); err != nil {
					t.Fatal(err)
				}
				e.mu.Lock()
				e.answer = test.edit
				e.mu.Unlock()
				e.pipe().Cut()
				e.say(e.client, e.server, "y")
				e.mu.Lock()
				defer e.mu.Unlock()
				if len(e.lost) != 2 || !errors.Is(e.lost[1], test.want) {
					t.Errorf("lost %v, want a cut and %v", e.lost, test.want)
				}
				if len(e.pipes) != 3 {
					t.Fatalf("%d carriers, want 3", len(e.pipes))
				}
				if _, err := e.pipes[1].Server.WriteMessages(nil); !errors.Is(err, test.want) {
					t.Errorf("the carrier ended with %v, want %v", err, test.want)
				}
			})
		})
	}
}
