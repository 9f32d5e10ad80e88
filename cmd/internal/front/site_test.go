package front_test

import (
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert/cmd/internal/front"
)

// A site shows the files of its directory, and nothing else of the machine.
func TestSite(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		filepath.Join(outside, "secret.txt"):              "secret",
		filepath.Join(dir, "index.html"):                  "<p>home",
		filepath.Join(dir, "a b.txt"):                     "a b",
		filepath.Join(dir, "docs", "index.html"):          "<p>docs",
		filepath.Join(dir, "files", "a.txt"):              "a",
		filepath.Join(dir, "odd", "index.html", "a.txt"):  "odd",
		filepath.Join(dir, ".git", "config"):              "secret",
		filepath.Join(dir, "files", ".htpasswd"):          "secret",
		filepath.Join(dir, ".well-known", "security.txt"): "contact",
		filepath.Join(dir, ".well-known", ".hidden"):      "secret",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"out": outside, "out.txt": filepath.Join(outside, "secret.txt"), "up": "..", "in.txt": "files/a.txt",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Skip(err) // a system where only some may
		}
	}
	site, err := front.Site(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/", 200, "<p>home"},
		{"HEAD", "/", 200, ""},
		{"GET", "/a%20b.txt", 200, "a b"},
		{"GET", "/docs/", 200, "<p>docs"},
		{"GET", "/docs", 301, ""},
		{"GET", "/files/a.txt", 200, "a"},
		{"GET", "/in.txt", 200, "a"},
		{"GET", "/.well-known/security.txt", 200, "contact"},

		{"GET", "/nothing", 404, ""},
		{"GET", "/files/", 404, ""},
		{"GET", "/files", 404, ""},
		{"GET", "/odd/", 404, ""},
		{"GET", "/.git/config", 404, ""},
		{"GET", "/files/.htpasswd", 404, ""},
		{"GET", "/.well-known/.hidden", 404, ""},
		{"GET", "/out/secret.txt", 404, ""},
		{"GET", "/out.txt", 404, ""},
		{"GET", "/up/" + filepath.Base(outside) + "/secret.txt", 404, ""},
		{"GET", "/../" + filepath.Base(outside) + "/secret.txt", 404, ""},
		{"GET", "/%2e%2e/secret.txt", 404, ""},
		{"GET", "/..%2f..%2fsecret.txt", 404, ""},
		{"GET", "/files%00/a.txt", 404, ""},
		{"GET", `/..\secret.txt`, 404, ""},
		{"POST", "/", 405, ""},
		{"OPTIONS", "/", 405, ""},
		{"PUT", "/files/a.txt", 405, ""},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(tt.method, "http://h"+tt.path, strings.NewReader(""))
		site.ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		if w.Code != tt.status || tt.status == 200 && string(body) != tt.body {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, w.Code, body, tt.status, tt.body)
		}
		if tt.status == 404 && string(body) != "404 page not found\n" {
			t.Errorf("%s %s: %q", tt.method, tt.path, body)
		}
		if allow := w.Header().Get("Allow"); (tt.status == http.StatusMethodNotAllowed) != (allow == "GET, HEAD") {
			t.Errorf("%s %s: Allow %q", tt.method, tt.path, allow)
		}
	}

	// A directory that takes the place of another is served at once.
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(outside, dir); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequest("GET", "/secret.txt", nil))
	if w.Code != 200 {
		t.Errorf("the new directory: %d", w.Code)
	}

	for _, bad := range []string{filepath.Join(dir, "secret.txt"), filepath.Join(dir, "nothing")} {
		if _, err := front.Site(bad); err == nil {
			t.Errorf("%s is a site", bad)
		}
	}
}

// A directory whose index.html goes away while it is being served, or cannot be opened
// for whatever reason, is not listed.
func TestSiteNeverLists(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"index.html", ".secret"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := siteLosing{front.SiteFiles(dir), filepath.Join(dir, "index.html")}
	w := httptest.NewRecorder()
	http.FileServerFS(files).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://h/", http.NoBody))
	if body := w.Body.String(); w.Code < 400 || strings.Contains(body, "secret") {
		t.Errorf("%d %q", w.Code, body)
	}
}

// siteLosing loses a file once another one has been opened.
type siteLosing struct {
	fs.FS
	lost string
}

func (s siteLosing) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	os.Remove(s.lost)
	return f, err
}
