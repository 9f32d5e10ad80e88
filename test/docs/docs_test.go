package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"culvert/auth"
)

const root = "../.."

// walk calls visit with the path, below the root, of every file of the repository that Git would keep.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "testdata"):
			return fs.SkipDir
		case !entry.IsDir():
			visit(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryPackageHasADoc(t *testing.T) {
	folders := make(map[string]bool)
	walk(t, func(path string) {
		if strings.HasSuffix(path, ".go") {
			folders[filepath.Dir(path)] = true
		}
	})
	for folder := range folders {
		path := filepath.Join(root, folder, "doc.go")
		if strings.HasPrefix(folder, "cmd/culvert-") {
			path = filepath.Join(root, folder, "main.go")
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Errorf("%s: %v", folder, err)
			continue
		}
		if len(file.Doc.Text()) < 40 {
			t.Errorf("%s says too little about the package", path)
		}
	}
}

var (
	fence = regexp.MustCompile("(?ms)^```.*?^```$")
	link  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	title = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// anchors are the fragments that the titles of a page can be reached by.
func anchors(page string) []string {
	var all []string
	for _, match := range title.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		var b strings.Builder
		for _, r := range strings.ToLower(match[1]) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
				b.WriteRune(r)
			}
		}
		all = append(all, b.String())
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	walk(t, func(path string) {
		if filepath.Ext(path) != ".md" {
			return
		}
		page := read(t, path)
		for _, match := range link.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
			target, fragment, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			destination := path
			if target != "" {
				destination = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(filepath.Join(root, destination)); err != nil {
				t.Errorf("%s: %s leads nowhere", path, match[1])
				continue
			}
			if fragment != "" && !slices.Contains(anchors(read(t, destination)), fragment) {
				t.Errorf("%s: %s has no such title", path, match[1])
			}
		}
	})
}

func TestTheReadmeHasItsParts(t *testing.T) {
	readme := read(t, "README.md")
	for _, want := range []string{
		"go run ./cmd/culvert-client demo", "./test/run", "mux/PROTOCOL.md", "CHANGELOG.md", "LICENSE",
		"<!-- flags:client -->", "<!-- flags:server -->", "<!-- /flags -->",
	} {
		if !strings.Contains(readme, want) {
			t.Errorf("README.md does not mention %s", want)
		}
	}
}

// TestRulesOfThePolicyPage checks that the rules which docs/policy.md shows are ones.
func TestRulesOfThePolicyPage(t *testing.T) {
	shown := 0
	for line := range strings.Lines(read(t, "docs/policy.md")) {
		rule, isRule := strings.CutPrefix(line, "    ")
		rule, _, _ = strings.Cut(rule, " #")
		if !isRule {
			continue
		}
		shown++
		if _, err := auth.ParseRule(rule); err != nil {
			t.Error(err)
		}
	}
	if shown < 5 {
		t.Errorf("%d rules are shown", shown)
	}
}
