package audit

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// perSecond is how many events of one kind Bounded writes.
	perSecond = 20
	// complaints is how often a log that cannot be written says so.
	complaints = time.Minute
)

// Log writes one line of JSON for each event, at once. A nil Log writes nothing. All
// methods are safe for concurrent use, and block no longer than a write does.
type Log struct {
	handler slog.Handler
	failed  func(err error, lost int)

	mu         sync.Mutex        // guards the rest
	floods     map[string]*flood // by event
	lost       int               // events since the last complaint
	complained time.Time
}

// flood counts what happens too often.
type flood struct {
	since   time.Time // when the present second began
	written int       // in it
	leftOut int
	timer   *time.Timer // writes how many were left out; nil: none were
}

// New returns a log that writes to w, which it does not close. failed, if not nil, is
// told, at most once a minute, that and why events could not be written, and how many
// since it was told last. It must not block.
func New(w io.Writer, failed func(err error, lost int)) *Log {
	return &Log{failed: failed, floods: make(map[string]*flood), handler: slog.NewJSONHandler(w, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			switch {
			case len(groups) > 0:
			case a.Key == slog.LevelKey:
				return slog.Attr{}
			case a.Key == slog.MessageKey:
				a.Key = "event"
			}
			return a
		},
	})}
}

// Event writes an event. Attributes whose value is "" are left out.
func (l *Log) Event(event string, attrs ...slog.Attr) {
	if l == nil {
		return
	}
	r := slog.NewRecord(time.Now().UTC(), slog.LevelInfo, event, 0)
	for _, a := range attrs {
		if a.Value.Kind() != slog.KindString || a.Value.String() != "" {
			r.AddAttrs(a)
		}
	}
	if err := l.handler.Handle(context.Background(), r); err != nil {
		l.complain(err)
	}
}

func (l *Log) complain(err error) {
	l.mu.Lock()
	l.lost++
	lost, now := l.lost, time.Now()
	due := l.complained.IsZero() || now.Sub(l.complained) >= complaints
	if due {
		l.complained, l.lost = now, 0
	}
	l.mu.Unlock()
	if due && l.failed != nil {
		l.failed(err, lost)
	}
}

// Bounded is Event for what somebody without a credential, or beyond a limit, can
// cause: after 20 in a second the rest are counted, and at its end one line says how
// many were left out.
func (l *Log) Bounded(event string, attrs ...slog.Attr) {
	if l == nil || !l.admit(event) {
		return
	}
	l.Event(event, attrs...)
}

func (l *Log) admit(event string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.floods[event]
	if f == nil {
		f = new(flood)
		l.floods[event] = f
	}
	now := time.Now()
	if now.Sub(f.since) >= time.Second {
		f.since, f.written = now, 0
	}
	if f.written < perSecond {
		f.written++
		return true
	}
	f.leftOut++
	if f.timer == nil {
		f.timer = time.AfterFunc(f.since.Add(time.Second).Sub(now), func() { l.settle(event, f) })
	}
	return false
}

// settle writes how many events were left out.
func (l *Log) settle(event string, f *flood) {
	l.mu.Lock()
	n := f.leftOut
	if f.timer != nil {
		f.timer.Stop()
	}
	f.leftOut, f.timer = 0, nil
	l.mu.Unlock()
	if n > 0 {
		l.Event(event, slog.Int("left_out", n))
	}
}

// Flush writes what is known of events that were left out.
func (l *Log) Flush() {
	if l == nil {
		return
	}
	l.mu.Lock()
	floods := make(map[string]*flood, len(l.floods))
	for event, f := range l.floods {
		floods[event] = f
	}
	l.mu.Unlock()
	for event, f := range floods {
		l.settle(event, f)
	}
}
