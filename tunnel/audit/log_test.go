package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"culvert/test/bubble"
)

func TestEvent(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, nil)
	before := time.Now()
	l.Event("login", slog.String("identity", "alice"), slog.String("credential", ""), slog.String("target", "a\n\"b\"\xff\x1b"), slog.Int("n", 0))
	text := b.String()
	if strings.Count(text, "\n") != 1 || strings.Contains(text, "\x1b") || strings.Contains(text, "\xff") {
		t.Errorf("not one clean line: %q", text)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339Nano, got["time"].(string))
	if err != nil || at.Before(before.Truncate(0)) || !strings.HasSuffix(got["time"].(string), "Z") {
		t.Errorf("time %v, %v", got["time"], err)
	}
	delete(got, "time")
	if got["target"] != "a\n\"b\"\ufffd\x1b" || got["event"] != "login" || got["identity"] != "alice" || got["n"] != 0.0 {
		t.Errorf("%v", got)
	}
	if _, ok := got["credential"]; ok {
		t.Error("an empty text is there")
	}
	if _, ok := got["level"]; ok {
		t.Error("a level is there")
	}

	var none *Log
	none.Event("nothing")
}

type broken struct{ err error }

func (w *broken) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// A log that cannot be written says so once a minute, and how many events that cost.
func TestComplaints(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := &broken{errors.New("no space left")}
		var complaints []int
		l := New(w, func(err error, events int) {
			if !errors.Is(err, w.err) {
				t.Error(err)
			}
			complaints = append(complaints, events)
		})
		for range 150 { // 2.5 minutes
			l.Event("x")
			time.Sleep(time.Second)
		}
		if len(complaints) != 3 || complaints[0] != 1 || complaints[1] != 60 || complaints[2] != 60 {
			t.Errorf("complaints of %v events", complaints)
		}
		w.err = nil
		l.Event("x")
		time.Sleep(time.Hour)
		if len(complaints) != 3 {
			t.Error("a complaint about a line that was written")
		}
	})
}

// BenchmarkEvent is the cost of an event as those of streams are.
func BenchmarkEvent(b *testing.B) {
	file, err := Open(b.TempDir()+"/audit", 100<<20, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for name, w := range map[string]io.Writer{"file": file, "nowhere": io.Discard} {
		b.Run(name, func(b *testing.B) {
			l := New(w, nil)
			b.ReportAllocs()
			for b.Loop() {
				l.Event("stream_ended", slog.String("identity", "alice"), slog.String("credential", "token laptop"),
					slog.String("remote", "192.0.2.1:1234"), slog.String("session", "01234567"), slog.Uint64("stream", 5),
					slog.String("target", "db.example.com:5432"), slog.String("address", "10.0.0.5:5432"), slog.String("rule", "allow 10.0.0.0/8:5432"),
					slog.Int64("bytes_sent", 1000), slog.Int64("bytes_received", 2000), slog.Float64("duration", 1.5), slog.String("ended", "closed"))
			}
		})
	}
}
