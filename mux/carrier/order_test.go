package carrier

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"culvert/test/bubble"
)

// answerer is a connection to a peer that answers every ping after a while, or
// that never answers.
type answerer struct {
	net.Conn
	c      *Conn // at this end
	silent bool
}

func (a *answerer) Write(p []byte) (int, error) {
	if len(p) >= 2 && p[0] == finalPing && !a.silent { // each frame is flushed by itself
		time.AfterFunc(50*time.Millisecond, a.speak)
	}
	return len(p), nil
}

func (a *answerer) Close() error { return nil }

// speak makes a frame of the peer arrive.
func (a *answerer) speak() {
	a.c.cork.vitals.readEnds(2)
	a.c.cork.vitals.readBegins()
}

// In whatever order a Conn's first message, its first ping, the peer's first message
// and the start of the pulse happen, a peer that answers pings is never given up, and
// a peer that is silent is given up in time.
func TestEveryOrderOfTheFirstEvents(t *testing.T) {
	orders := permutations([]string{"start", "message", "ping", "peer"})
	for _, order := range permutations([]string{"start", "message"}) { // of a link that is idle
		orders = append(orders, order, append(order, "peer"), append([]string{"peer"}, order...))
	}
	const timeout = 10 * time.Second
	for _, heartbeat := range []time.Duration{5 * time.Second, 20 * time.Second} {
		for _, apart := range []time.Duration{0, time.Millisecond} {
			for _, order := range orders {
				for _, silent := range []bool{false, true} {
					name := fmt.Sprintf("%s,heartbeat=%v,apart=%v,silent=%t", strings.Join(order, "-"), heartbeat, apart, silent)
					t.Run(name, func(t *testing.T) {
						bubble.Test(t, func(t *testing.T) {
							c := beginIn(order, apart, silent, Options{Heartbeat: heartbeat, HeartbeatTimeout: timeout})
							began := time.Now()
							select {
							case <-c.done:
								if took := time.Since(began); !silent {
									t.Errorf("a healthy connection was given up after %v", took)
								}
							case <-time.After(10 * time.Minute):
							}
							if took, limit := time.Since(began), heartbeat+timeout; silent && took > limit {
								t.Errorf("given up after %v, want %v at most", took, limit)
							}
							c.Abort(nil)
							c.wg.Wait()
						})
					})
				}
			}
		}
	}
}

// beginIn starts a Conn whose first events happen in this order, apart from one another.
func beginIn(order []string, apart time.Duration, silent bool, opt Options) *Conn {
	far := &answerer{silent: silent}
	k := newCork(newWire(far), false)
	c := &Conn{cork: k, opt: opt, done: make(chan struct{})}
	far.c = c
	c.SetHeartbeat(opt.Heartbeat)
	k.start(c.finish)
	c.wg.Go(c.flushLoop)
	k.vitals.readBegins()
	for _, event := range order {
		switch event {
		case "start":
			c.wg.Go(c.pulse)
		case "message":
			_, _ = c.WriteMessages([]byte{})
		case "ping":
			k.ping()
		case "peer":
			far.speak()
		}
		<-time.After(apart)
	}
	return c
}

func permutations(of []string) (all [][]string) {
	if len(of) == 0 {
		return [][]string{nil}
	}
	for i, first := range of {
		rest := append(append([]string{}, of[:i]...), of[i+1:]...)
		for _, p := range permutations(rest) {
			all = append(all, append([]string{first}, p...))
		}
	}
	return all
}
