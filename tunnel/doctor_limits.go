package tunnel

import (
	"context"
	"fmt"
	"sync"
	"time"

	"culvert/mux/carrier"
)

// quietTimes are how long connections are left alone: those on both sides of the
// limits that boxes are known to have.
var quietTimes = []time.Duration{
	2 * time.Second, 4 * time.Second, 8 * time.Second, 12 * time.Second, 18 * time.Second, 25 * time.Second,
	35 * time.Second, 50 * time.Second, 65 * time.Second, 95 * time.Second, 125 * time.Second, 185 * time.Second,
	245 * time.Second, 305 * time.Second, 365 * time.Second, 605 * time.Second, 905 * time.Second, 1805 * time.Second, 3605 * time.Second,
}

const (
	chatter    = time.Second            // between two heartbeats of what is never quiet
	settle     = 300 * time.Millisecond // before a connection is left alone
	probeLimit = 4 * time.Second        // for a sign of life
)

// fate is what became of a connection.
type fate struct {
	quiet time.Duration // how long it was left alone
	died  time.Duration // when it died; 0: it did not
	word  bool          // somebody closed it, and did not just stop answering
}

// limits waits for connections to be cut: some that are quiet for times of
// different length, all at once, and one that never is.
func (d *Doctor) limits(ctx context.Context, dialer carrier.Dialer) {
	ctx, cancel := context.WithTimeout(ctx, d.Long)
	defer cancel()
	var waiting sync.WaitGroup
	fates := make(chan fate, len(quietTimes))
	for _, quiet := range quietTimes {
		if quiet+probeLimit+time.Second <= d.Long {
			waiting.Go(func() {
				if f, ok := d.leaveAlone(ctx, dialer, quiet); ok {
					fates <- f
				}
			})
		}
	}
	age, cut, err := d.keepBusy(ctx, dialer)
	waiting.Wait()
	close(fates)

	switch {
	case err != nil:
		d.found(stepAge, VerdictSkip, "not looked at: %v", err)
	case cut:
		d.symptoms.age = age
		d.measured(stepAge, VerdictWarn, age.Seconds(), "s", "a connection that was in use was cut after %s", rounded(age))
	default:
		d.found(stepAge, VerdictOK, "a connection in use is not cut within %s", rounded(age))
	}
	var all []fate
	for f := range fates {
		all = append(all, f)
	}
	limit, silent, survived := idleLimit(all, d.symptoms.age)
	switch d.symptoms.quiet, d.symptoms.silent = limit, silent; {
	case limit == 0 && survived == 0:
		d.found(stepIdle, VerdictSkip, "not looked at: no connection was idle for %s and then asked", quietTimes[0])
	case limit == 0:
		d.found(stepIdle, VerdictOK, "an idle connection is not cut within %s", rounded(survived))
	case silent:
		shorter := ""
		if survived > 0 {
			shorter = fmt.Sprintf("; one that was for %s was not", rounded(survived))
		}
		d.measured(stepIdle, VerdictWarn, limit.Seconds(), "s", "a connection that was idle for %s was forgotten without a word%s", rounded(limit), shorter)
	default:
		d.measured(stepIdle, VerdictWarn, limit.Seconds(), "s", "a connection that was idle for %s was closed", rounded(limit))
	}
}

// idleLimit is the shortest time of quiet after which a connection died, if that was
// not because of its age, and the longest after which one lived.
func idleLimit(fates []fate, age time.Duration) (limit time.Duration, silent bool, survived time.Duration) {
	for _, f := range fates {
		ofAge := age > 0 && f.died >= age-age/10
		if f.died > 0 && !ofAge && (limit == 0 || f.died < limit) {
			limit, silent = f.died, !f.word
		}
	}
	for _, f := range fates {
		if f.died == 0 && (limit == 0 || f.quiet < limit) {
			survived = max(survived, f.quiet)
		}
	}
	return limit, silent, survived
}

// leaveAlone has a connection of its own be quiet, and then asks whether it still
// lives. It has no answer if it could not be made or ctx ended.
func (d *Doctor) leaveAlone(ctx context.Context, dialer carrier.Dialer, quiet time.Duration) (f fate, ok bool) {
	dialer.Options.Heartbeat = d.Long + time.Hour
	dialer.Options.HeartbeatTimeout = d.Long + time.Hour
	v, err := d.visit(ctx, dialer)
	if err != nil {
		return fate{}, false
	}
	defer v.end()
	// What both ends have to say in the beginning is answered by then, or the
	// server would ask for a sign of life.
	if !sleep(ctx, settle) || v.ask(ctx) != nil {
		return fate{}, false
	}
	began := time.Now()
	f.quiet = quiet
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	select {
	case <-v.lost:
		f.died, f.word = time.Since(began), true
		return f, ctx.Err() == nil
	case <-ctx.Done():
		return f, false
	case <-timer.C:
	}
	if v.ask(ctx) != nil {
		f.died = quiet
	}
	return f, ctx.Err() == nil
}

// ask asks the server for a sign of life.
func (v *visit) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	return v.carrier.Probe(ctx)
}

// keepBusy has a connection never be quiet, and says when it was cut, or that it was
// not until ctx ended.
func (d *Doctor) keepBusy(ctx context.Context, dialer carrier.Dialer) (age time.Duration, cut bool, err error) {
	dialer.Options.Heartbeat = chatter
	v, err := d.visit(ctx, dialer)
	if err != nil {
		return 0, false, err
	}
	defer v.end()
	began := time.Now()
	select {
	case <-v.lost:
		return time.Since(began), ctx.Err() == nil, nil
	case <-ctx.Done():
		return time.Since(began), false, nil
	}
}
