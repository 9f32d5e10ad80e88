package program

import (
	"io"
	"log/slog"
)

// NewLogger logs to w, in the form "text" or "json", what is at least of the given
// level.
func NewLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
