package docs

import (
	"os"
	"regexp"
	"testing"
)

// block is a fenced block below a comment that names it.
var block = regexp.MustCompile("(?ms)^<!-- ((?:run|file): [a-z. ]+) -->\n+```[a-z]*\n(.*?)^```$")

// Blocks returns the blocks of a page that tests run, by their names:
//
//	<!-- run: database client -->    commands
//	<!-- file: client.yaml -->       the content of a file
func Blocks(t testing.TB, page string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := make(map[string]string)
	for _, match := range block.FindAllStringSubmatch(string(text), -1) {
		if blocks[match[1]] != "" {
			t.Errorf("%s has two blocks %q", page, match[1])
		}
		blocks[match[1]] = match[2]
	}
	return blocks
}
