package audit

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// complaints is how often a log that cannot be written says so.
const complaints = time.Minute

// Log writes one line of JSON for each event, at once. A nil Log writes nothing. All
// methods are safe for concurrent use, and block no longer than a write does.
type Log struct {
	handler slog.Handler
	failed  func(err error, lost int)

	mu         sync.Mutex // guards the rest
	lost       int        // events since the last complaint
	complained time.Time
}

// New returns a log that writes to w, which it does not close. failed, if not nil, is
// told, at most once a minute, that and why events could not be written, and how many
// since it was told last. It must not block.
func New(w io.Writer, failed func(err error, lost int)) *Log {
	return &Log{failed: failed, handler: slog.NewJSONHandler(w, &slog.HandlerOptions{
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
