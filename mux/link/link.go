package link

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Carrier is what a link rides on: a transport of whole messages, in order.
type Carrier interface {
	// AwaitMessage waits until a message begins, and ReadMessage reads it into p,
	// which holds the largest one allowed and 64 bytes that the carrier may need
	// beside it. One goroutine of the link at a time calls them, one after the other.
	AwaitMessage() error
	ReadMessage(p []byte) (int, error)
	// OnIdle has both call f when they are about to wait for the peer, as far as they
	// can tell. It is called before either.
	OnIdle(f func())
	// WriteMessages sends each of v as one message, in order and together if
	// it can. It does not block: it says whether all was sent, and if not,
	// Flush sends the rest, which may block, also after an Abort, but not for
	// long then. v belongs to the carrier until one of them has said so, or
	// has failed. The link calls one of them at a time.
	WriteMessages(v ...[]byte) (sent bool, err error)
	Flush() error
	// Close ends the carrier after what was written; Abort ends it at once.
	// Both unblock AwaitMessage, ReadMessage and Flush and may be called at any time.
	Close(reason string) error
	Abort(cause error)
	// Secure says whether this end of the carrier is under TLS, or sealed.
	Secure() bool
	// RemoteAddr is the peer's address, for logs.
	RemoteAddr() string
	// SetUnsentLimit bounds the bytes that wait unsent in the socket, 0 for
	// the system's default. It is a hint.
	SetUnsentLimit(bytes int)
}

// Config of a link. Zero values mean the defaults.
type Config struct {
	// ResumeWindow is how long the link waits, without a carrier, for the
	// next one. 60 s.
	ResumeWindow time.Duration
	// ReplayBuffer bounds the unacknowledged bytes kept to be sent again,
	// overheads included; writers wait when it is full. 64 KiB or more, 16 MiB.
	ReplayBuffer int
	// MaxMessage is the largest message accepted from the peer, in bytes,
	// between 4 KiB and 128 KiB. 128 KiB.
	MaxMessage int
	// MaxOverrun bounds the bytes of answers that a peer may cause and not take
	// while the link is full. It should be what it takes to reset all streams. 2 MiB.
	MaxOverrun int
	Logger     *slog.Logger // nil: discarded
}

// Defaults of Config.
const (
	DefaultResumeWindow = 60 * time.Second
	DefaultReplayBuffer = 16 << 20

	DefaultMaxOverrun = 2 << 20

	minReplayBuffer = 64 << 10
	// scarceReplay is what a link may keep in any case when memory is scarce.
	scarceReplay = 512 << 10
	// accountEvery is by how much the bytes kept change before memory is told.
	accountEvery = 16 << 10
)

func (c Config) withDefaults() Config {
	if c.ResumeWindow <= 0 {
		c.ResumeWindow = DefaultResumeWindow
	}
	if c.ReplayBuffer <= 0 {
		c.ReplayBuffer = DefaultReplayBuffer
	}
	c.ReplayBuffer = max(c.ReplayBuffer, minReplayBuffer)
	if c.MaxOverrun <= 0 {
		c.MaxOverrun = DefaultMaxOverrun
	}
	if c.MaxMessage <= 0 || c.MaxMessage > MaxMessage {
		c.MaxMessage = MaxMessage
	}
	c.MaxMessage = max(c.MaxMessage, minMaxMessage)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

const (
	ackDelay   = 20 * time.Millisecond // received bytes are acknowledged after that at the latest
	checkEvery = time.Second           // how often a sender without progress says its offset
)

// Link is one session's byte stream in each direction. Its methods may be called
// by any goroutine. It is made by [New] or by a [Registry].
type Link struct {
	id    SessionID
	cfg   Config
	ended context.Context // ends with the link, its cause is err
	stop  context.CancelCauseFunc

	attachMu sync.Mutex     // held while one carrier takes the place of another
	running  sync.WaitGroup // the goroutines of attachments; guarded by attachMu

	mu        sync.Mutex
	onRoom    func()    // see Handle
	awaited   bool      // somebody was told that the link is full
	work      sync.Cond // for the writer goroutines: something to send
	settled   sync.Cond // for Flush: everything was acknowledged, or the link has ended
	out       outbox
	pace      pace
	att       *attachment // nil while detached
	leaving   *attachment // the one before att, until it has ended
	attaching bool        // another one waits for the end of the last one
	number    uint64      // of the handshake of the last carrier
	dials     uint64      // client: handshakes so far
	started   bool        // had a carrier
	claims    int         // handshakes under way: do not expire
	lostAt    time.Time
	window    time.Duration
	received  uint64 // bytes of the peer's stream in order, delivered or just about to be
	ackSent   uint64 // what the peer was last told of received
	ackDue    bool
	ackPace   ackPace
	checked   uint64 // out.acked at the last checkProgress
	bye       string // reason to tell the peer once everything was sent
	closing   bool
	err       error // why the link ended

	woken context.Context // ends with the next Wake
	wake  context.CancelFunc

	expiry   *time.Timer // runs while detached
	ackTimer *time.Timer // runs while something received is unacknowledged
	ackArmed bool
	check    *time.Timer // runs while something sent is unacknowledged
	checkOn  bool

	displacing *allowance // of carriers that end a live one; nil: no limit

	memory    Memory // see Account; may be nil
	accounted int    // bytes that it was told of
	overrun   int    // bytes appended since the link was found full

	handled   chan struct{} // closed when there is a handler
	onReceive func([]byte)  // see Handle
}

// New makes the client's end of a new session. It opens nothing; see
// [Link.Maintain].
func New(cfg Config) *Link { return newLink(newSessionID(), cfg) }

func newLink(id SessionID, cfg Config) *Link {
	cfg = cfg.withDefaults()
	l := &Link{id: id, cfg: cfg, window: cfg.ResumeWindow, handled: make(chan struct{})}
	l.ended, l.stop = context.WithCancelCause(context.Background())
	l.woken, l.wake = context.WithCancel(context.Background())
	l.out.maxMessage = minMaxMessage // until the peer has said what it takes
	l.work.L, l.settled.L = &l.mu, &l.mu
	l.expiry = stopped(l.expire)
	l.ackTimer = stopped(l.acknowledge)
	l.check = stopped(l.checkProgress)
	return l
}

// ID is the session's short name for logs.
func (l *Link) ID() string { return l.id.String() }

// Done is closed when the link has ended; Err then says why.
func (l *Link) Done() <-chan struct{} { return l.ended.Done() }

// Err is why the link ended, nil while it has not.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Attached says whether the link has a carrier at the moment.
func (l *Link) Attached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.att != nil
}

// AttachedFor is how long the link has had its present carrier, 0 without one.
func (l *Link) AttachedFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.att == nil {
		return 0
	}
	return time.Since(l.att.since)
}

// Carrier is the carrier that the link rides on at the moment, or nil.
func (l *Link) Carrier() Carrier {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.att == nil {
		return nil
	}
	return l.att.carrier
}

// RoundTrip is the shortest time lately from sending a message to its
// acknowledgement, and Bandwidth the largest rate of delivery lately in bytes
// per second; 0 while unknown.
func (l *Link) RoundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.roundTrip()
}

// Bandwidth is described at [Link.RoundTrip].
func (l *Link) Bandwidth() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.bandwidth()
}

// Handle gives the link who uses it; nothing is received before. receive is
// called with received bytes, in order, by one goroutine at a time; p is valid
// until it returns, and nothing more is received meanwhile. room is called when a
// link that was found full is not full any more. Both may call the link's
// methods, and neither may wait for the peer. Handle is called once.
func (l *Link) Handle(receive func(p []byte), room func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onReceive, l.onRoom = receive, room
	close(l.handled)
}

// Append queues v, the parts of which stay together, to leave with the next
// Send. It does not wait: its callers take turns, ask Full before and write
// little at a time, and only what is short and answers the peer comes without. It
// fails when the link has ended or is closing, and it ends a link whose peer asks
// for answers without taking them, with [ErrOverrun].
func (l *Link) Append(v [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.closing {
		return ErrClosed
	}
	if !l.full() {
		l.overrun = 0
	} else if l.overrun > l.cfg.MaxOverrun {
		l.end(ErrOverrun)
		return l.err
	}
	l.out.preferred = l.pace.message()
	for _, p := range v {
		l.overrun += len(p)
		l.out.append(p)
	}
	l.account(accountEvery)
	return nil
}

// Memory is told how many bytes links keep to send them again.
type Memory = interface {
	// Charge notes that n more bytes are kept, or fewer.
	Charge(n int64)
	// Spare says whether links may keep more than half a MiB each.
	Spare() bool
}

// Account has m know of the bytes that the link keeps until they are acknowledged, from
// now on until its end.
func (l *Link) Account(m Memory) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.memory = m
	l.account(1)
}

// account tells memory how many bytes are kept if that has changed by so many. Called with
// mu held.
func (l *Link) account(by int) {
	n := l.out.held - l.accounted
	if l.memory != nil && (n >= by || -n >= by) {
		l.accounted += n
		l.memory.Charge(int64(n))
	}
}

// Full says whether those who write should wait until the link has room, of which
// its handler is told unless the link ends.
func (l *Link) Full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := l.full()
	l.awaited = l.awaited || full
	return full
}

func (l *Link) full() bool {
	return l.out.unsent >= l.pace.unsentLimit() || l.out.held >= l.cfg.ReplayBuffer ||
		l.out.held >= scarceReplay && l.memory != nil && !l.memory.Spare()
}

// Flush waits until the peer has acknowledged everything that was written, and
// returns nil, or until the link has ended or stop is closed.
func (l *Link) Flush(stop <-chan struct{}) error {
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		select {
		case <-stop:
			l.mu.Lock()
			l.settled.Broadcast()
			l.mu.Unlock()
		case <-quit:
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && l.out.outstanding() > 0 {
		select {
		case <-stop:
			return fmt.Errorf("flush: %d bytes unacknowledged", l.out.outstanding())
		default:
		}
		l.settled.Wait()
	}
	return l.err
}

// settledLocked wakes Flush if the peer has acknowledged everything.
func (l *Link) settledLocked() {
	if l.out.outstanding() == 0 {
		l.settled.Broadcast()
	}
}

// Close tells the peer that the link ends, with a reason of at most 200 bytes,
// and ends it. What is queued is sent first if there is a carrier that takes
// it; without one, or when it does not within a second, the link ends at once.
func (l *Link) Close(reason string) error {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil
	}
	if l.att == nil {
		l.end(ErrClosed)
		l.mu.Unlock()
		l.Wait()
		return nil
	}
	if !l.closing { // else somebody else has said why, and it may be under way
		l.bye, l.closing = reason[:min(len(reason), maxReason)], true
		l.work.Broadcast()
	}
	l.mu.Unlock()

	timer := time.AfterFunc(time.Second, func() {
		l.mu.Lock()
		l.end(ErrClosed)
		l.mu.Unlock()
	})
	defer timer.Stop()
	<-l.Done()
	l.Wait()
	return nil
}

// end makes err the reason of the link's end, once. Called with mu held.
func (l *Link) end(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.expiry.Stop()
	l.ackTimer.Stop()
	l.check.Stop()
	if att := l.att; att != nil {
		l.detach(att)
		att.carrier.Abort(err)
	}
	if l.leaving != nil {
		l.leaving.carrier.Abort(err)
	}
	l.out.discard()
	l.account(1)
	l.work.Broadcast()
	l.settled.Broadcast()
	l.stop(err)
}

// Wait waits until the goroutines of the attachments have returned, which they do
// when the link has ended.
func (l *Link) Wait() {
	l.attachMu.Lock()
	defer l.attachMu.Unlock()
	l.running.Wait()
}
