package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/link"
)

// learner draws from the carriers of a client what its path knows, keeps it in a
// file, and says how long the next ones are used and how often they ping.
type learner struct {
	server string // in the file
	memory memory
	log    events

	mu   sync.Mutex
	path pathLimits
}

// mortal is what a learner needs of a *carrier.Conn.
type mortal interface {
	Life() carrier.Life
	SetHeartbeat(d time.Duration)
}

// recall reads the file. What is wrong with it is only logged.
func (r *learner) recall() {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, err := r.memory.load(r.server, time.Now())
	if err != nil {
		r.log.Warn("state file ignored", keyError, err)
	}
	r.path.facts = known
}

// dialled has a new carrier ping as often as is known to be good.
func (r *learner) dialled(c link.Carrier) {
	if m, ok := c.(mortal); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		m.SetHeartbeat(r.path.interval())
	}
}

const (
	// lateAnswer is how long the answer to what ends a quiet time may take before
	// it is asked for: a carrier that is quiet has nothing in the way of it.
	lateAnswer = 2 * time.Second
	// quietBefore is what counts as one.
	quietBefore = time.Second
)

// look learns from a carrier that lives. It says whether an answer is late, if what
// was sent is answered at all: a path that has forgotten c would be noticed by the
// heartbeat only later.
func (r *learner) look(c link.Carrier) (late bool) {
	m, ok := c.(mortal)
	if !ok {
		return false
	}
	life := m.Life()
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.path.expire(now)
	r.survived(life.Survived, now)
	m.SetHeartbeat(r.path.interval())
	return life.Waiting > lateAnswer && life.Quiet > quietBefore
}

// survived learns from the longest quiet time that a carrier has survived. mu is held.
func (r *learner) survived(quiet time.Duration, now time.Time) {
	if r.path.survived(quiet) {
		r.log.Info("idle limit forgotten", "survived", quiet.Round(time.Millisecond))
		r.store(now)
	}
}

// store keeps what is known now in the file. mu is held.
func (r *learner) store(now time.Time) {
	if err := r.memory.store(r.server, r.path.facts, now); err != nil {
		r.log.Warn("state file not written", keyError, err)
	}
}

// replaceAfter says how long from now on c may be used; 0: as long as it lasts.
func (r *learner) replaceAfter(c link.Carrier) time.Duration {
	m, ok := c.(mortal)
	if !ok {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path.expire(time.Now())
	return r.path.replaceAfter(m.Life().Age)
}

func (r *learner) replaced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path.replaced()
}

// lesson is what can be learned from the death of a carrier if the session is resumed
// at the next attempt. If it is not, the server was gone or the network was down, and
// no limit of the path was the cause.
type lesson struct {
	learner *learner
	life    carrier.Life
	silent  bool // the path did not end the carrier: the peer was not heard any more
}

// lost returns the lesson of a carrier that has died of err, nil if there is none.
func (r *learner) lost(c link.Carrier, err error) *lesson {
	m, ok := c.(mortal)
	if !ok {
		return nil
	}
	silent := errors.Is(err, carrier.ErrHeartbeat) || errors.Is(err, errForgotten)
	if !silent && !byPath(err) {
		return nil
	}
	return &lesson{r, m.Life(), silent}
}

// resumed learns from a lesson, which may be nil, now that the session goes on with a
// carrier to the server of next.
func (l *lesson) resumed(next *learner) {
	if l == nil || l.learner != next {
		return
	}
	r, now := l.learner, time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.survived(l.life.Survived, now)
	learned := r.path.quietDeath(quietDeath{l.life.Quiet, l.life.Exact}, now)
	if learned {
		r.log.Info("idle limit learned", "quiet", r.path.Idle.Round(time.Millisecond), "heartbeat", r.path.interval())
	}
	if !l.silent && r.path.aged(l.life.Age, now) {
		learned = true
		if r.path.Age > 0 {
			r.log.Info("age limit learned", "age", r.path.Age.Round(time.Millisecond), "replace_after", r.path.replaceAfter(0))
		} else {
			r.log.Info("age limit forgotten")
		}
	}
	if learned {
		r.store(now)
	}
}

// byPath reports whether the network, or a box in it, may have ended a carrier with
// this error. An agent that ends one says so.
func byPath(err error) bool {
	if closed, ok := errors.AsType[*carrier.CloseError](err); ok {
		return !closed.FromAgent()
	}
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
