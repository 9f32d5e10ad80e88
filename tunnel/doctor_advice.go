package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"culvert/mux/carrier"
)

// telling is why no tunnel comes up, as the client would say it.
func (s *symptoms) telling() error {
	var failed []error
	for _, err := range []error{s.upgrade, s.requests} {
		if err != nil && !errors.Is(err, errNotTried) {
			failed = append(failed, err)
		}
	}
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failed[0]
	}
	return carrier.Telling(failed[0], failed[1])
}

// tellingForward is the error about forwards that decides the exit code, nil if all
// work. A listener that fails comes first: it ends a client, and a target does not.
func (s *symptoms) tellingForward() error {
	for _, err := range s.forwards {
		if forward, ok := errors.AsType[*ForwardError](err); ok && forward.Listens {
			return err
		}
	}
	if len(s.forwards) > 0 {
		return s.forwards[0]
	}
	return nil
}

// advice says what to change, in the order of how much it matters.
func (s *symptoms) advice() []string {
	var advice []string
	say := func(format string, args ...any) { advice = append(advice, fmt.Sprintf(format, args...)) }
	box := cmp.Or(s.front, "something on the way")

	stripped := s.upgrade != nil && !errors.Is(s.upgrade, errNotTried)
	var proxy *carrier.ProxyError
	switch {
	case s.worked && errors.As(s.upgrade, &proxy):
		say("the proxy %s makes no tunnel to the server's port: culvert sends it HTTP requests instead; a wss:// server at port 443 may be allowed", proxy.Proxy)
	case s.worked && stripped:
		around := ""
		if !s.secure {
			around = ", and a wss:// address may avoid the box"
		}
		say("%s does not let WebSocket upgrades pass: culvert uses HTTP requests by itself; --carrier http saves the attempt%s", box, around)
	case errors.Is(s.requests, carrier.ErrSeveralServers):
		say("requests reach different culvert servers: have %s send all requests of a client to the same one (sticky sessions, by cookie or by address), or let WebSocket upgrades pass", box)
	case !s.worked && stripped && errors.Is(s.requests, errNotTried):
		say("no WebSocket comes up; without --carrier websocket culvert can do with HTTP requests")
	}
	if s.quiet > 0 {
		how := "closes"
		if s.silent {
			how = "silently forgets"
		}
		what := "nothing to do, heartbeats come every " + s.heartbeat.String()
		if s.heartbeat >= s.quiet {
			what = fmt.Sprintf("give --heartbeat %s, or do nothing: culvert learns it, and no stream is lost meanwhile", (s.quiet * 2 / 3).Round(time.Second/10))
		}
		say("%s %s connections that are idle for %s: %s", box, how, rounded(s.quiet), what)
	}
	if s.age > 0 {
		say("%s cuts every connection after %s: nothing to do, streams survive it, and culvert learns to change connections before", box, rounded(s.age))
	}
	if s.loaded > 5*s.idle && s.loaded > 200*time.Millisecond {
		say("the path holds much before it drops anything (bufferbloat): beside a transfer an echo takes %s instead of %s", rounded(s.loaded), rounded(s.idle))
	}
	return advice
}
