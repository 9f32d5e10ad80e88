package textfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// ErrUTF16 is returned for a text in UTF-16.
var ErrUTF16 = errors.New("the text is UTF-16; save it as UTF-8")

// Read returns the text in the file at path, which has at most limit bytes. An error is
// a [fs.PathError]. Read blocks until the writer of a pipe has closed it. It may be called
// concurrently.
func Read(path string, limit int64) ([]byte, error) {
	data, err := content(path, limit)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	text, err := Text(data)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return text, nil
}

// Text returns the text in data, which is data without a UTF-8 byte order mark, or
// [ErrUTF16]. UTF-16 is known by its byte order mark, or by a first character whose high
// byte is zero.
func Text(data []byte) ([]byte, error) {
	if len(data) >= 2 {
		first, second := data[0], data[1]
		mark := first == 0xff && second == 0xfe || first == 0xfe && second == 0xff
		if mark || (first == 0) != (second == 0) {
			return nil, ErrUTF16
		}
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}

// kept has what was read from files that are not regular, by path. It belongs to the
// process because pipes do: nobody can read them again.
var kept = struct {
	sync.Mutex
	files map[string]keptFile
}{files: make(map[string]keptFile)}

type keptFile struct {
	info    fs.FileInfo // another file may take its place at the path
	content []byte
}

// content returns the bytes of the file, limit+1 at most.
func content(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().IsRegular() || info.IsDir() {
		return read(path, limit) // which returns the error
	}
	kept.Lock()
	defer kept.Unlock()
	file, ok := kept.files[path]
	if !ok || !os.SameFile(file.info, info) {
		data, err := read(path, limit)
		if err != nil {
			return nil, err
		}
		file = keptFile{info, data}
		kept.files[path] = file
	}
	return bytes.Clone(file.content), nil
}

func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
