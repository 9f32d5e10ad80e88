package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// File is a file that lines are appended to and that only its owner can read. When
// another line would make it too large it is renamed to FILE.1, what was FILE.1 to
// FILE.2 and so on, and begun anew. Other programs may rename or remove it too: that
// is noticed a second later, or with Reopen.
type File struct {
	path string
	max  int64 // bytes
	keep int   // renamed files

	mu     sync.Mutex // guards the rest
	file   *os.File   // nil if it could not be opened lately
	size   int64
	fixed  bool // is a pipe, a device or a link: nothing to be renamed
	closed bool
	torn   bool      // the last line was not written to its end
	seen   time.Time // when the file was last found at its path
}

// recheck is how long lines go to a file that may not be at its path any more.
const recheck = time.Second

// Open opens or creates the file, or a pipe or device, which is never renamed. Of the renamed ones, the last keep are kept; 0
// keeps none.
func Open(path string, maxSize int64, keep int) (*File, error) {
	f := &File{path: path, max: maxSize, keep: keep}
	return f, f.Reopen()
}

// Reopen closes the file and opens what is at its path now. If that fails, nothing
// changes.
func (f *File) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	return f.reopen()
}

// reopen is Reopen with mu held. A pipe, device or link that still leads to what is
// open stays open: to open a pipe waits for a reader.
func (f *File) reopen() error {
	if f.file != nil && f.fixed && !f.gone() {
		return nil
	}
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return err
	}
	if f.file != nil {
		_ = f.file.Close() // what was written to it is with the system
	}
	f.file, f.size, f.seen = file, info.Size(), time.Now()
	f.torn = f.torn && f.size > 0
	there, err := os.Lstat(f.path)
	f.fixed = err != nil || !there.Mode().IsRegular()
	return nil
}

// moved reports whether the file is not at its path any more. It looks once in recheck.
// Called with mu held.
func (f *File) moved() bool {
	now := time.Now()
	if now.Sub(f.seen) < recheck {
		return false
	}
	f.seen = now
	return f.gone()
}

// gone reports whether another file, or none, is at the path of the open one. Called
// with mu held.
func (f *File) gone() bool {
	there, err := os.Stat(f.path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	ours, err := f.file.Stat()
	return err == nil && !os.SameFile(there, ours)
}

// Write appends a line. When the file cannot be replaced, the line goes to the one
// that there is, and an error says why.
func (f *File) Write(line []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	var replaced error
	if f.file == nil || f.moved() {
		replaced = f.reopen()
	}
	if f.file != nil && !f.fixed && f.size > 0 && f.size+int64(len(line)) > f.max {
		replaced = errors.Join(replaced, f.rotate())
	}
	if f.file == nil {
		return 0, replaced
	}
	if f.torn { // so that what there is of a line spoils no other
		if _, err := f.file.Write([]byte("\n")); err != nil {
			return 0, err
		}
		f.torn = false
	}
	n, err = f.file.Write(line)
	f.size += int64(n)
	f.torn = n > 0 && n < len(line)
	return n, errors.Join(err, replaced)
}

// rotate renames the files and begins a new one, or goes on with the one that could
// not be renamed. It is closed before that, as not every system renames what is open.
// Called with mu held.
func (f *File) rotate() error {
	name := func(i int) string {
		if i == 0 {
			return f.path
		}
		return fmt.Sprintf("%s.%d", f.path, i)
	}
	_ = f.file.Close() // what was written to it is with the system
	f.file = nil
	var err error
	for i := f.keep; i > 0 && err == nil; i-- {
		if err = os.Rename(name(i-1), name(i)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if f.keep == 0 {
		err = os.Remove(f.path)
	}
	return errors.Join(err, f.reopen())
}

// Close closes the file. Nothing can be written to it any more.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
