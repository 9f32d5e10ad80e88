package textfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"culvert/auth/textfile"
)

func TestRead(t *testing.T) {
	const limit = 10
	for _, tt := range []struct{ content, want, problem string }{
		{"", "", ""},
		{"x", "x", ""},
		{"0123456789", "0123456789", ""},
		{"0123456789a", "", "larger than 10 bytes"},
		{"\ufeffkey: 1\n", "key: 1\n", ""},
		{"\ufeff", "", ""},
		{"\ufeff\ufeffx", "\ufeffx", ""},
		{"x\ufeff", "x\ufeff", ""},
		{"\x30\x82\x01\x00", "\x30\x82\x01\x00", ""}, // DER
		{encoded("\ufeffa: 1", false), "", "UTF-16"},
		{encoded("\ufeffa: 1", true), "", "UTF-16"},
		{encoded("a: 1", false), "", "UTF-16"},
		{encoded("a: 1", true), "", "UTF-16"},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := textfile.Read(path, limit)
		if tt.problem == "" {
			if err != nil || string(got) != tt.want {
				t.Errorf("%q: %q, %v, want %q", tt.content, got, err, tt.want)
			}
			continue
		}
		pathError, ok := errors.AsType[*fs.PathError](err)
		if !ok || pathError.Path != path || !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%q: %v, want the path and %q", tt.content, err, tt.problem)
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := textfile.Read(missing, limit); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := textfile.Read(t.TempDir(), limit); err == nil {
		t.Error("a directory is a text file")
	}
}

// Regular files are read anew each time.
func TestRegularFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := textfile.Read(path, 10); err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "x", "\ufeff", "\ufeffx", "\xef\xbb", "\xff\xfe", "\xfe\xff", "\xff", "\x00x", "x\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := textfile.Text(data)
		if err == nil && string(text) != strings.TrimPrefix(string(data), "\ufeff") {
			t.Errorf("%q: %q", data, text)
		}
		if err != nil && bytes.IndexByte(data[:2], 0) < 0 && data[0] < 0xfe {
			t.Errorf("%q: %v", data, err)
		}
	})
}

// encoded is text in UTF-16.
func encoded(text string, bigEndian bool) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(text)) {
		high, low := byte(unit>>8), byte(unit)
		if bigEndian {
			b.Write([]byte{high, low})
		} else {
			b.Write([]byte{low, high})
		}
	}
	return b.String()
}
