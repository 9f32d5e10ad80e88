package front

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
)

// Site serves the files of a directory, to GET and HEAD: a directory's index.html, but
// no list of a directory, nothing whose name begins with a dot but .well-known, and
// nothing that a symbolic link leads to outside.
func Site(dir string) (http.Handler, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s: not a directory", dir)
	}
	files := http.FileServerFS(siteFiles(dir))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		files.ServeHTTP(w, r)
	}), nil
}

// siteFiles are the files of a directory that may be shown.
type siteFiles string

// Open opens a regular file, or a directory that has an index.html.
func (s siteFiles) Open(name string) (fs.File, error) {
	f, err := s.open(name)
	if err != nil {
		// One error for all: a stranger cannot tell what is there.
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

func (s siteFiles) open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	for element := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(element, ".") && element != "." && element != ".well-known" {
			return nil, fs.ErrNotExist
		}
	}
	root, err := os.OpenRoot(string(s)) // each time: another directory may have its name by now
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err == nil && info.IsDir() {
		var index fs.FileInfo
		if index, err = root.Stat(path.Join(name, "index.html")); err == nil && !index.Mode().IsRegular() {
			err = fs.ErrNotExist
		}
	} else if err == nil && !info.Mode().IsRegular() { // opening a pipe would block
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	f, err := root.Open(name)
	if err == nil && info.IsDir() {
		return unlisted{f}, nil
	}
	return f, err
}

// unlisted is a directory without its ReadDir: package http lists one whose index.html
// it cannot open, if only because the process has no more files to open.
type unlisted struct{ fs.File }
