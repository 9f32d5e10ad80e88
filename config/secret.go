package config

import "log/slog"

// redacted is what a Secret shows of itself.
const redacted = "[redacted]"

// Secret is a text that must not be shown: every way of printing, logging or
// encoding it gives a placeholder. Only Reveal returns the text. The zero Secret
// is empty.
type Secret struct {
	text *string // a pointer, since fmt prints the fields of a struct in an unexported field
}

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the text. What it returns is for the wire only.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether there is no text.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// String returns a placeholder.
func (s Secret) String() string { return redacted }

// GoString returns a placeholder.
func (s Secret) GoString() string { return redacted }

// LogValue returns a placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder; it covers encoding/json and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
