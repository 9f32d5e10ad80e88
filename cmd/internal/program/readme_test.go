package program

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert/config"
)

var update = flag.Bool("update", false, "write the tables of flags into README.md")

// TestReadmeTables keeps the README's tables of flags what the code says:
//
//	go test ./cmd/internal/program -run TestReadmeTables -update
func TestReadmeTables(t *testing.T) {
	path := filepath.Join("..", "..", "..", "README.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for agent, options := range map[string][]config.Option{"client": config.ClientOptions(), "server": config.ServerOptions()} {
		start, end := "<!-- flags:"+agent+" -->", "<!-- /flags -->"
		before, rest, found := strings.Cut(text, start)
		table, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			t.Errorf("README.md has no table of the %s's flags between %s and %s", agent, start, end)
			continue
		}
		want := "\n" + config.FlagTable(options)
		if table != want && !*update {
			t.Errorf("README.md's table of the %s's flags is not what the code says; run this test with -update", agent)
		}
		text = before + start + want + end + after
	}
	if *update && text != string(data) && !t.Failed() {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
