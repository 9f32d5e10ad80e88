package linktest

import (
	"encoding/hex"
	"os"
	"regexp"
	"testing"
)

// Vector returns the byte example of this name in PROTOCOL.md, whose path is
// page.
func Vector(t testing.TB, page, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^    ` + name + ` ([0-9a-f]+)$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no vector %q", page, name)
	}
	b, err := hex.DecodeString(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
