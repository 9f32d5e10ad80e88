package carrier

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Mode is a way to make carriers.
type Mode string

// The modes of a Dialer.
const (
	// ModeAuto tries a WebSocket first and, where no upgrade passes, an HTTP pipe.
	ModeAuto Mode = "auto"
	// ModeWebSocket upgrades one HTTP request.
	ModeWebSocket Mode = "websocket"
	// ModeHTTP makes an HTTP pipe: a run of plain requests, and the upgrade inside.
	ModeHTTP Mode = "http"
)

const (
	// upgradePatience is how long ModeAuto waits for an answer to the upgrade
	// before it tries something else.
	upgradePatience = 3 * time.Second
	// stripped is how long a way counts as one that lets no upgrade through, and
	// firstStripped how long at first: it may have been a hiccup.
	stripped      = 10 * time.Minute
	firstStripped = time.Minute
	// mutedFor is the same of one that answers upgrades and lets no frame through: to try
	// another WebSocket there makes everybody wait until its heartbeat times out.
	mutedFor = time.Hour
	// maxMute is how many WebSockets in a row may end without a byte of the peer's.
	maxMute = 2
	// maxPipeFailures is how many HTTP pipes in a row must get no answer of the server
	// before a WebSocket is tried although they were mute.
	maxPipeFailures = 3
)

// Ladder remembers the way to one server between Dials: which kind of
// carrier passes, and which credential a forward proxy accepts. The zero value is
// ready, and knows nothing. Its methods may be called concurrently, and
// on nil.
type Ladder struct {
	mu      sync.Mutex // guards the following
	until   time.Time  // upgrades are presumed to be stripped
	again   bool       // and were before
	mute    int        // WebSockets in a row that ended without a byte of the peer's
	muted   time.Time  // WebSockets are presumed to be mute until then
	failed  int        // HTTP pipes in a row, since then, that were not answered
	patient bool       // the next upgrade may take as long as it likes
	learned time.Time  // when the following was; it holds as long as stripped
	body    bodySize   // of POSTs
	path    pipePath
	proxy   proxyMemory // has a lock of its own
}

// proxyMemory remembers what the forward proxy on the way has accepted.
func (l *Ladder) proxyMemory() *proxyMemory {
	if l == nil {
		return nil
	}
	return &l.proxy
}

// pipePath is what is known of how answers arrive.
type pipePath int

const (
	pathUnknown pipePath = iota
	pathStreams          // as they are written
	pathBuffers          // when they have ended
)

// climb tries a WebSocket and, when no upgrade passes, an HTTP pipe.
func (d *Dialer) climb(ctx context.Context, r *request) (*Conn, []byte, error) {
	if d.Ladder.Again() > 0 {
		c, reply, err := d.dialPipe(ctx, r)
		d.Ladder.dialledPipe(err)
		return c, reply, err
	}
	patience := upgradePatience
	if d.Ladder.takePatient() {
		patience = 0
	}
	c, reply, err := d.dialOver(ctx, ModeWebSocket, r, patience)
	if err == nil || !d.mayBeStripped(err) || ctx.Err() != nil {
		return c, reply, err
	}
	c, reply, pipeErr := d.dialPipe(ctx, r)
	switch {
	case pipeErr == nil:
		d.Ladder.strips()
		return c, reply, nil
	case ofCulvert(pipeErr):
		d.Ladder.strips()
		return nil, nil, pipeErr
	default:
		d.Ladder.setPatient(errors.Is(err, errNoAnswer))
		return nil, nil, Telling(err, pipeErr)
	}
}

// Telling returns which of the errors of two ways to the server says more, as a Dial
// that has tried both returns it: the answer of a culvert server, then an error after
// which trying again can help, then the first. Both are not nil.
func Telling(first, second error) error {
	if ofCulvert(first) {
		return first
	}
	if ofCulvert(second) || Permanent(first) && !Permanent(second) {
		return second
	}
	return first
}

// mayBeStripped reports whether the error of a WebSocket dial may mean that
// something between lets no upgrade through, and other requests. Whoever asks to be
// left alone for some time is not asked in another way.
func (d *Dialer) mayBeStripped(err error) bool {
	dial, ok := errors.AsType[*DialError](err)
	return ok && !ofCulvert(err) && RetryAfter(err) == 0 &&
		(dial.Phase == PhaseUpgrade || dial.Phase == PhaseHello || tunnelRefused(err) && !d.secure())
}

// ofCulvert reports whether the error is a culvert server's own answer, or those of
// several.
func ofCulvert(err error) bool {
	refused, ok := errors.AsType[*RefusedError](err)
	return errors.Is(err, ErrSeveralServers) || ok && (refused.Token != "" || errors.Is(err, ErrUnauthorized))
}

// Again is how long it takes until a Dial in ModeAuto tries a WebSocket again; 0 or
// less means that the next one does.
func (l *Ladder) Again() time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.until), time.Until(l.muted))
}

// strips notes that no upgrade passes and an HTTP pipe does.
func (l *Ladder) strips() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again {
		l.until = time.Now().Add(stripped)
	} else {
		l.until = time.Now().Add(firstStripped)
	}
	l.again = true
}

// speaks notes that a WebSocket has brought a message.
func (l *Ladder) speaks() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again, l.mute = false, 0
}

// Answers says what is known of how the answers to an HTTP pipe arrive: as they are
// written ("stream"), when they have ended ("buffer"), or nothing ("").
func (l *Ladder) Answers() string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[pipePath]string{pathStreams: "stream", pathBuffers: "buffer"}[l.path]
}

// dialledPipe notes how a Dial ended that made an HTTP pipe because no WebSocket was
// presumed to pass. After a failure the next Dial tries a WebSocket. But where they were
// mute, which costs everybody a heartbeat timeout to find out again, only after several
// failures that say something about HTTP pipes there.
func (l *Ladder) dialledPipe(err error) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dial, ok := errors.AsType[*DialError](err)
	switch {
	case err == nil || ofCulvert(err):
		l.failed = 0
		return
	case ok && dial.Phase == PhaseUpgrade && !errors.Is(err, context.Canceled):
		l.failed++
	}
	l.until = time.Time{}
	if l.failed >= maxPipeFailures {
		l.muted, l.failed = time.Time{}, 0
	}
}

// Forget forgets what is known of the way to the server, which is another one.
func (l *Ladder) Forget() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until, l.again = time.Time{}, false
	l.muted, l.mute, l.failed = time.Time{}, 0, 0
	l.learned = time.Time{}
}

// unlearn forgets how answers and bodies pass.
func (l *Ladder) unlearn() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.learned = time.Time{}
}

func (l *Ladder) setPatient(on bool) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.patient = on
}

func (l *Ladder) takePatient() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	on := l.patient
	l.patient = false
	return on
}

// ended notes that a WebSocket has ended, and whether it had carried anything to
// this end: a box may answer 101 and let no frame pass.
func (l *Ladder) ended(heard bool) {
	if l == nil {
		return
	}
	if heard {
		l.speaks()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute++; l.mute >= maxMute {
		l.mute = maxMute - 1 // of the next one, one time is enough
		l.muted, l.failed = time.Now().Add(mutedFor), 0
	}
}

// pipe returns what an HTTP pipe should begin with.
func (l *Ladder) pipe() (bodySize, pipePath) {
	if l == nil {
		return bodySize{size: firstBody, most: maxBody}, pathUnknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	return l.body, l.path
}

// refreshLocked forgets what is too old. mu is held.
func (l *Ladder) refreshLocked() {
	if now := time.Now(); l.learned.IsZero() || now.Sub(l.learned) > stripped {
		l.learned, l.body, l.path = now, bodySize{size: firstBody, most: maxBody}, pathUnknown
	}
}

func (l *Ladder) setBody(b bodySize) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	b.least = 0 // the next one may go another way
	l.body = b
}

func (l *Ladder) setPath(p pipePath) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	l.path = p
}
