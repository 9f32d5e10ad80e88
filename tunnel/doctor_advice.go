package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// telling is why no tunnel comes up: what a WebSocket fails by says more.
func (f *facts) telling() error {
	for _, err := range []error{f.upgrade, f.requests} {
		if err != nil && !errors.Is(err, errNotTried) {
			return err
		}
	}
	return nil
}

// advice says what to change, in the order of how much it matters.
func (f *facts) advice() []string {
	var advice []string
	say := func(format string, args ...any) { advice = append(advice, fmt.Sprintf(format, args...)) }
	box := cmp.Or(f.front, "something on the way")

	stripped := f.upgrade != nil && !errors.Is(f.upgrade, errNotTried)
	switch {
	case f.worked && stripped:
		say("%s does not let WebSocket upgrades pass: culvert uses HTTP requests by itself; --carrier http saves the attempt, and a wss:// address may avoid the box", box)
	case !f.worked && stripped && errors.Is(f.requests, errNotTried):
		say("no WebSocket comes up; without --carrier websocket culvert can do with HTTP requests")
	}
	if f.quiet > 0 {
		how := "closes"
		if f.silent {
			how = "silently forgets"
		}
		what := "nothing to do, heartbeats come every " + f.heartbeat.String()
		if f.heartbeat >= f.quiet {
			what = fmt.Sprintf("give --heartbeat %s, or do nothing: culvert learns it, and no stream is lost meanwhile", (f.quiet * 2 / 3).Round(time.Second/10))
		}
		say("%s %s connections that are idle for %s: %s", box, how, rounded(f.quiet), what)
	}
	if f.age > 0 {
		say("%s cuts every connection after %s: nothing to do, streams survive it, and culvert learns to change connections before", box, rounded(f.age))
	}
	if f.loaded > 5*f.idle && f.loaded > 200*time.Millisecond {
		say("the path holds much before it drops anything (bufferbloat): beside a transfer an echo takes %s instead of %s", rounded(f.loaded), rounded(f.idle))
	}
	return advice
}
