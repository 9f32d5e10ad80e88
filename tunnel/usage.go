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
	up, down *bandwidth.Line // from clients and to clients
	memory   *mux.Budget
	ends     sync.WaitGroup // what is still to be done for streams that have ended

	mu sync.Mutex        // taken before that of a usage
	of map[string]*usage // identities with sessions, or with something taken lately; guarded by mu

	opensMu sync.Mutex // taken after all others
	opens   bandwidth.Bucket
}

// usage is what one identity uses: its sessions together.
type usage struct {
	all      *usages
	identity string
	up, down *bandwidth.Share
	memory   *mux.Budget
	refused  every // for the log

	counts atomic.Bool // there is a limit of bytes per day

	mu       sync.Mutex // guards the rest
	limits   auth.Limits
	opens    bandwidth.Bucket
	sessions int
	streams  int
	day      int64 // days since 1970
	bytes    int64 // of that day
}

// Limits as logs and clients are told of them.
const (
	limitStreams  = "streams of an identity"
	limitOpens    = "opens per second of an identity"
	limitAllOpens = "opens per second"
	limitDay      = "bytes per day of an identity"
)

// limitError says which limit is reached. The peer is told the same.
type limitError struct{ limit string }

func (e *limitError) Error() string { return "limit reached: " + e.limit }
func (e *limitError) Unwrap() error { return &mux.Error{Code: mux.Limit, Reason: e.Error()} }

func newUsages(cfg *ServerConfig) *usages {
	us := &usages{
		guard: cfg.Guard, log: newEvents(cfg.Settings),
		up: bandwidth.NewLine(cfg.MaxUpload), down: bandwidth.NewLine(cfg.MaxDownload),
		memory: mux.NewBudget(int64(cfg.Memory)),
		of:     make(map[string]*usage),
	}
	us.opens.Set(float64(cfg.MaxOpensPerSecond), float64(cfg.MaxOpensPerSecond), time.Now())
	cfg.Guard.OnUse(us.refresh)
	return us
}

// join counts one more session of identity.
func (us *usages) join(identity string) *usage {
	us.mu.Lock()
	defer us.mu.Unlock()
	u := us.of[identity]
	if u == nil {
		u = &usage{
			all: us, identity: identity, up: us.up.Share(), down: us.down.Share(), memory: us.memory.Part(),
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
	for name, u := range us.of {
		if u.idle(now) {
			delete(us.of, name)
		}
	}
}

// idle reports whether a new usage would be the same.
func (u *usage) idle(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sessions == 0 && u.streams == 0 && (u.bytes == 0 || u.day != dayOf(now)) &&
		u.opens.Full(now) && u.up.Rested() && u.down.Rested()
}

// refresh gives every identity the limits that it has now.
func (us *usages) refresh() {
	us.mu.Lock()
	defer us.mu.Unlock()
	for name, u := range us.of {
		u.limit(us.guard.Limits(name))
	}
}

// limit changes the limits. Streams and sessions beyond them go on.
func (u *usage) limit(l auth.Limits) {
	u.mu.Lock()
	defer u.mu.Unlock()
	rate := float64(l.OpensPerSecond)
	u.opens.Set(rate, rate, time.Now())
	u.up.SetRate(l.Upload)
	u.down.SetRate(l.Download)
	u.memory.SetLimit(l.Memory)
	u.counts.Store(l.BytesPerDay > 0)
	u.limits = l
}

// enter counts one more stream, until exit. The error is a *limitError.
func (u *usage) enter() error {
	limit := u.bound(time.Now())
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
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.limits.Streams > 0 && u.streams >= u.limits.Streams:
		return limitStreams
	case u.spentLocked(now):
		return limitDay
	case !u.opens.Take(now):
		return limitOpens
	case !u.all.opened(now):
		return limitAllOpens
	}
	u.streams++
	return ""
}

func (u *usage) exit() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams--
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
	if !u.counts.Load() {
		return
	}
	today := dayOf(time.Now())
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.day != today {
		u.day, u.bytes = today, 0
	}
	u.bytes += int64(n)
}

// spent says whether the bytes of today are used up.
func (u *usage) spent() bool {
	if !u.counts.Load() {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.spentLocked(time.Now())
}

func (u *usage) spentLocked(now time.Time) bool {
	return u.limits.BytesPerDay > 0 && u.day == dayOf(now) && u.bytes >= u.limits.BytesPerDay
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
func (f *flow) waits() bool { return f.share.Limited() || f.usage.spent() }

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
	if f.usage.spent() {
		err := &limitError{limitDay}
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
