package link

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// Pauses are as long as asked while nobody waits, and short otherwise, but never
// shorter than the server wants.
func TestPause(t *testing.T) {
	const long = time.Hour
	for _, test := range []struct {
		name        string
		most, least time.Duration
		from        time.Duration // when somebody begins to wait; 0: nobody does
		min, max    time.Duration // of the pause
	}{
		{"nobody waits", long, 0, 0, long, long},
		{"at once", long, 0, 1, urgentPause / 2, urgentPause},
		{"later", long, 0, 10 * time.Minute, 10 * time.Minute, 10 * time.Minute},
		{"a short pause", time.Millisecond, 0, 1, time.Millisecond, time.Millisecond},
		{"the server wants to be left alone", long, time.Minute, 1, time.Minute, time.Minute},
		{"and for longer than we", time.Second, time.Minute, 0, time.Minute, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var d Demand
				d.Add()() // over
				if test.from > 0 {
					timer := time.AfterFunc(test.from-1, func() {
						done := d.Add()
						d.Add()()
						time.AfterFunc(2*long, done)
					})
					defer timer.Stop()
				}
				began := time.Now()
				d.Pause(t.Context(), test.most, test.least)
				if took := time.Since(began); took < test.min-1 || took > test.max {
					t.Errorf("pause of %v, want %v to %v", took, test.min, test.max)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var nobody *Demand
	nobody.Pause(ctx, long, long)
	var d Demand
	defer d.Add()()
	d.Pause(ctx, long, long)
}

// A connection that waits for a carrier makes the pause short, however long the
// outage has lasted.
func TestDemandEndsThePause(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var d Demand
		e := connectAs(t, Config{ResumeWindow: time.Hour}, Config{ResumeWindow: time.Hour}, Redial{Max: 10 * time.Minute, Demand: &d})
		e.say(e.client, e.server, "x")
		time.Sleep(time.Second)
		e.setRefuse(errors.New("no route"))
		e.pipe().Cut()
		time.Sleep(30 * time.Minute)
		e.setRefuse(nil)
		done := d.Add()
		defer done()
		time.Sleep(urgentPause)
		synctest.Wait()
		if !e.client.Attached() {
			t.Error("no carrier a second after somebody began to wait for one")
		}
	})
}

// The pauses of an outage grow with its length.
func TestEarlyPausesAreShort(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connectAs(t, Config{ResumeWindow: time.Hour}, Config{ResumeWindow: time.Hour}, Redial{})
		e.say(e.client, e.server, "x")
		time.Sleep(time.Second)
		e.setRefuse(errors.New("no route"))
		lost := time.Now()
		e.pipe().Cut()
		for time.Since(lost) < 10*time.Minute {
			e.mu.Lock()
			e.pauses = nil
			e.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
			e.mu.Lock()
			for _, p := range e.pauses {
				if most := max(time.Second, time.Since(lost)/4); p > most {
					t.Errorf("pause of %v after %v", p, time.Since(lost))
				}
			}
			e.mu.Unlock()
		}
	})
}

// A server that asks to be left alone for some time is, whoever waits.
func TestRetryAfter(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var d Demand
		defer d.Add()()
		busy := errors.New("busy")
		var dials []time.Time
		ctx, cancel := context.WithCancel(t.Context())
		err := New(Config{}).Maintain(ctx, Redial{
			Demand: &d,
			Dial: func(context.Context, []byte) (Carrier, []byte, error) {
				if dials = append(dials, time.Now()); len(dials) == 5 {
					cancel()
				}
				return nil, nil, busy
			},
			RetryAfter: func(err error) time.Duration {
				if errors.Is(err, busy) {
					return time.Minute
				}
				return 0
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for i := range dials[1:] {
			if pause := dials[i+1].Sub(dials[i]); pause < time.Minute || pause > 2*time.Minute {
				t.Errorf("asked again after %v", pause)
			}
		}
	})
}
