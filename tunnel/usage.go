package tunnel

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/tunnel/bandwidth"
)

// usages are what the identities use of a server, each within its limits, which the
// guard knows.
type usages struct {
	guard    *auth.Guard
	log      events
	floods   *floods
	up, down *bandwidth.Line // from clients and to clients
	memory   *mux.Budget
	forwards int            // that a session may have
	ends     sync.WaitGroup // what is still to be done for streams that have ended

	mu sync.Mutex           // taken before that of a usage
	of map[string]*usage    // identities with sessions, or with something taken lately; guarded by mu
	by map[string]*subjects // of such identities, by their names; guarded by mu

	opensMu sync.Mutex // taken after all others
	opens   bandwidth.Bucket
}

// usage is what one identity uses: its sessions together. Each subject of a signed token
// has one.
type usage struct {
	tally
	all      *usages
	identity string
	subjects *subjects
	up, down *bandwidth.Share
	memory   *mux.Budget
	refused  every // for the log

	opening chan struct{} // an element for each stream whose target is being dialled
	turns   chan struct{} // one element while something takes its turn

	listens  bandwidth.Bucket // that are asked for; guarded by the tally's mu
	sessions int              // guarded by the tally's mu
}

// subjects are what all subjects of signed tokens use together that are one identity, or
// what an identity uses that has no subject.
type subjects struct {
	tally
	up, down *bandwidth.Group
}

// tally counts what has limits.
type tally struct {
	counts atomic.Bool // there is a limit of bytes per day

	mu      sync.Mutex // guards the rest; that of a usage is taken before that of its subjects
	limits  auth.Limits
	opens   bandwidth.Bucket
	streams int
	day     int64 // days since 1970
	bytes   int64 // of that day
}

// maxOpening streams of an identity are being opened at once; more wait. What waits takes
// no goroutine, and many goroutines are what others would have to wait for.
const maxOpening = 256

// turnTime is how long an identity's turn takes.
const turnTime = time.Millisecond

// turn waits for a millisecond, after those of the identity that came before. Requests to
// listen and refusals take such a turn: they cost a server more than they cost the client,
// which could ask for them without end. A nil usage does not wait.
func (u *usage) turn() {
	if u != nil {
		u.turns <- struct{}{}
		time.Sleep(turnTime)
		<-u.turns
	}
}

// Limits as logs and clients are told of them.
const (
	limitStreams  = "streams of an identity"
	limitOpens    = "opens per second of an identity"
	limitAllOpens = "opens per second"
	limitDay      = "bytes per day of an identity"

	limitSharedStreams = "streams of all subjects of an identity"
	limitSharedOpens   = "opens per second of all subjects of an identity"
	limitSharedDay     = "bytes per day of all subjects of an identity"
)

// limitError says which limit is reached. The peer is told the same.
type limitError struct{ limit string }

func (e *limitError) Error() string { return "limit reached: " + e.limit }
func (e *limitError) Unwrap() error { return &mux.Error{Code: mux.Limit, Reason: e.Error()} }

func newUsages(cfg *ServerConfig) *usages {
	us := &usages{
		guard: cfg.Guard, log: newEvents(cfg.Settings), floods: newFloods(newEvents(cfg.Settings), cfg.Audit),
		up: bandwidth.NewLine(cfg.MaxUpload), down: bandwidth.NewLine(cfg.MaxDownload),
		memory: mux.NewBudget(int64(cfg.Memory - pipeMemory(cfg))), forwards: cfg.MaxForwards,
		of: make(map[string]*usage),
		by: make(map[string]*subjects),
	}
	us.opens.Set(float64(cfg.MaxOpensPerSecond), float64(cfg.MaxOpensPerSecond), time.Now())
	cfg.Guard.OnUse(us.refresh)
	return us
}

// pipeMemory is the part of the memory that is for HTTP pipes.
func pipeMemory(cfg *ServerConfig) int { return cfg.Memory / 8 }

// join counts one more session of identity.
func (us *usages) join(identity string) *usage {
	us.mu.Lock()
	defer us.mu.Unlock()
	u := us.of[identity]
	if u == nil {
		name, shared := us.guard.SharedLimits(identity)
		s := us.by[name]
		if s == nil {
			s = &subjects{up: us.up.Group(), down: us.down.Group()}
			s.limit(shared)
			us.by[name] = s
		}
		u = &usage{
			all: us, identity: identity, subjects: s, up: s.up.Share(), down: s.down.Share(), memory: us.memory.Part(),
			opening: make(chan struct{}, maxOpening), turns: make(chan struct{}, 1),
			refused: every{interval: 10 * time.Second},
		}
		u.limit(us.guard.Limits(identity))
		us.of[identity] = u
	}
	u.mu.Lock()
	u.sessions++
	u.mu.Unlock()
	return u
}

// leave counts one session less. What is not used any more is forgotten, but not what
// would be allowed again by that.
func (us *usages) leave(u *usage) {
	us.mu.Lock()
	defer us.mu.Unlock()
	u.mu.Lock()
	u.sessions--
	u.mu.Unlock()
	now := time.Now()
	used := make(map[*subjects]bool)
	for name, u := range us.of {
		if u.idle(now) {
			delete(us.of, name)
		} else {
			used[u.subjects] = true
		}
	}
	for name, s := range us.by {
		if !used[s] && s.idle(now) {
			delete(us.by, name)
		}
	}
}

// idle reports whether a new usage would be the same.
func (u *usage) idle(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sessions == 0 && u.idleLocked(now) && u.listens.Full(now) && u.up.Rested() && u.down.Rested()
}

func (s *subjects) idle(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idleLocked(now) && s.up.Rested() && s.down.Rested()
}

func (t *tally) idleLocked(now time.Time) bool {
	return t.streams == 0 && (t.bytes == 0 || t.day != dayOf(now)) && t.opens.Full(now)
}

// refresh gives every identity the limits that it has now.
func (us *usages) refresh() {
	us.mu.Lock()
	defer us.mu.Unlock()
	for identity, u := range us.of {
		u.limit(us.guard.Limits(identity))
	}
	for name, s := range us.by {
		_, shared := us.guard.SharedLimits(name)
		s.limit(shared)
	}
}

// limit changes the limits. Streams and sessions beyond them go on.
func (u *usage) limit(l auth.Limits) {
	u.tally.limit(l)
	u.mu.Lock()
	rate := float64(l.OpensPerSecond)
	u.listens.Set(rate, max(rate, float64(u.all.forwards)), time.Now())
	u.mu.Unlock()
	u.up.SetRate(l.Upload)
	u.down.SetRate(l.Download)
	u.memory.SetLimit(l.Memory)
}

func (s *subjects) limit(l auth.Limits) {
	s.tally.limit(l)
	s.up.SetRate(l.Upload)
	s.down.SetRate(l.Download)
}

func (t *tally) limit(l auth.Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rate := float64(l.OpensPerSecond)
	t.opens.Set(rate, rate, time.Now())
	t.counts.Store(l.BytesPerDay > 0)
	t.limits = l
}

// enter counts one more stream, until exit. The error is a *limitError.
func (u *usage) enter() error {
	return u.within(u.bound(time.Now()))
}

// listen counts one more listener that is asked for. They may come as fast as streams
// are opened, but as many at once as a session may have: a client asks for all of its own
// when its session begins. The error is a *limitError.
func (u *usage) listen() error {
	u.mu.Lock()
	ok := u.listens.Take(time.Now())
	u.mu.Unlock()
	if ok {
		return nil
	}
	return u.within(limitOpens)
}

// within is nil if limit is "", and otherwise the error of the limit that is reached.
func (u *usage) within(limit string) error {
	if limit == "" {
		return nil
	}
	if u.refused.now() {
		u.all.log.Warn("limit reached", keyLimit, limit, keyClient, u.identity)
	}
	return &limitError{limit}
}

// bound counts one more stream, or says which limit is reached.
func (u *usage) bound(now time.Time) (limit string) {
	s := u.subjects
	u.mu.Lock()
	defer u.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case u.fullLocked():
		return limitStreams
	case s.fullLocked():
		return limitSharedStreams
	case u.spentLocked(now):
		return limitDay
	case s.spentLocked(now):
		return limitSharedDay
	case !u.opens.Take(now):
		return limitOpens
	case !s.opens.Take(now):
		return limitSharedOpens
	case !u.all.opened(now):
		return limitAllOpens
	}
	u.streams++
	s.streams++
	return ""
}

func (t *tally) fullLocked() bool { return t.limits.Streams > 0 && t.streams >= t.limits.Streams }

func (u *usage) exit() {
	for _, t := range []*tally{&u.tally, &u.subjects.tally} {
		t.mu.Lock()
		t.streams--
		t.mu.Unlock()
	}
}

// meter returns st with its bytes counted, for the audit log's entry of it as well,
// and bounded. The stream has been entered, and its end is the exit. The server waits
// for that before it ends.
func (u *usage) meter(st stream, e *entry) *metered {
	u.all.ends.Add(1)
	context.AfterFunc(st.Context(), func() {
		defer u.all.ends.Done()
		u.exit()
	})
	return &metered{
		stream: st, entry: e,
		up:   flow{usage: u, share: u.up, stream: st},
		down: flow{usage: u, share: u.down, stream: st},
	}
}

func (us *usages) opened(now time.Time) bool {
	us.opensMu.Lock()
	defer us.opensMu.Unlock()
	return us.opens.Take(now)
}

// spend counts bytes of today.
func (u *usage) spend(n int) {
	u.tally.spend(n)
	u.subjects.spend(n)
}

func (t *tally) spend(n int) {
	if !t.counts.Load() {
		return
	}
	today := dayOf(time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.day != today {
		t.day, t.bytes = today, 0
	}
	t.bytes += int64(n)
}

// spent says of what the bytes of today are used up, "" for nothing.
func (u *usage) spent() (limit string) {
	switch {
	case u.tally.spent():
		return limitDay
	case u.subjects.spent():
		return limitSharedDay
	}
	return ""
}

func (t *tally) spent() bool {
	if !t.counts.Load() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.spentLocked(time.Now())
}

func (t *tally) spentLocked(now time.Time) bool {
	return t.limits.BytesPerDay > 0 && t.day == dayOf(now) && t.bytes >= t.limits.BytesPerDay
}

func dayOf(t time.Time) int64 { return t.Unix() / (24 * 60 * 60) }

// metered is a stream whose bytes count for an identity. Writes wait for bandwidth,
// and so does what is delivered; the end of the stream ends the wait.
type metered struct {
	stream
	up, down flow
	entry    *entry
}

// Close is for who serves the stream, once, when nothing writes to it or to what it is
// delivered to: a stream may have ended before, but only now is it known how many bytes
// it moved.
func (m *metered) Close() error {
	err := m.stream.Close()
	m.entry.end(context.Cause(m.Context()), m.down.moved.Load(), m.up.moved.Load())
	return err
}

func (m *metered) Write(p []byte) (n int, err error) { return m.down.write(m.stream, p) }

// Room is that of the stream. Where bandwidth is bounded there always is some: Write
// waits.
func (m *metered) Room() int {
	if to, ok := m.stream.(roomy); ok && !m.down.waits() {
		return to.Room()
	}
	return largeChunk
}

// WriteFrom is called where there is no room, and so bandwidth is not bounded.
func (m *metered) WriteFrom(n int, read func(most int) []byte) (int, error) {
	n, err := m.stream.(roomy).WriteFrom(n, read)
	m.down.usage.spend(n)
	m.down.moved.Add(int64(n))
	return n, err
}

func (m *metered) Deliver(w mux.TryWriter, done func(n int64, err error)) {
	m.stream.Deliver(&meteredWriter{w, &m.up}, done)
}

// meteredWriter writes what is delivered. As long as it has to wait for bandwidth it
// takes nothing without waiting.
type meteredWriter struct {
	mux.TryWriter
	flow *flow
}

func (w *meteredWriter) TryWrite(p []byte) (int, error) {
	if w.flow.waits() {
		return 0, nil
	}
	n, err := w.TryWriter.TryWrite(p)
	w.flow.usage.spend(n)
	w.flow.moved.Add(int64(n))
	return n, err
}

func (w *meteredWriter) Write(p []byte) (int, error) { return w.flow.write(w.TryWriter, p) }

// flow is one direction of a stream.
type flow struct {
	usage  *usage
	share  *bandwidth.Share
	stream stream
	turn   bandwidth.Turn
	moved  atomic.Int64 // bytes
}

// waits says whether not everything may go at once.
func (f *flow) waits() bool { return f.share.Limited() || f.usage.spent() != "" }

// write writes p to w, piece by piece when the bandwidth is bounded.
func (f *flow) write(w io.Writer, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		if k, err = f.take(len(p) - n); err != nil {
			break
		}
		k, err = w.Write(p[n : n+k])
		f.moved.Add(int64(k))
		n += k
	}
	return n, err
}

// take waits until some of n bytes may go, and returns how many. The error is the
// end of the stream, which take makes when the bytes of the day are used up.
func (f *flow) take(n int) (int, error) {
	if limit := f.usage.spent(); limit != "" {
		err := &limitError{limit}
		f.stream.Reset(verdict(err, mux.Limit))
		return 0, err
	}
	n = f.share.Take(f.stream.Context().Done(), &f.turn, n)
	if n == 0 {
		return 0, context.Cause(f.stream.Context())
	}
	f.usage.spend(n)
	return n, nil
}
