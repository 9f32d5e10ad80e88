package audit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

func open1(t *testing.T, path string, maxSize int64, keep int) *File {
	t.Helper()
	f, err := Open(path, maxSize, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func want(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s has %q, %v; want %q", filepath.Base(path), got, err, content)
	}
}

func write(t *testing.T, f *File, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if n, err := f.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("%d bytes written, %v", n, err)
		}
	}
}

func TestRotation(t *testing.T) {
	for _, keep := range []int{0, 1, 2} {
		t.Run(strconv.Itoa(keep), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "audit")
			f := open1(t, path, 8, keep)
			write(t, f, "1st\n", "2nd\n", "3rd\n", "a line that is too long by itself\n", "5th\n", "6th\n", "7th\n")
			want(t, path, "7th\n")
			older := []string{"5th\n6th\n", "a line that is too long by itself\n"}
			for i := range keep {
				want(t, path+"."+strconv.Itoa(i+1), older[i])
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) != keep+1 {
				t.Errorf("%d files, %v; want %d", len(files), err, keep+1)
			}
			info, err := os.Stat(path)
			if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// A file goes on where it ended, and counts what was there.
func TestGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	write(t, open1(t, path, 8, 1), "1st\n")
	write(t, open1(t, path, 8, 1), "2nd\n")
	want(t, path, "1st\n2nd\n")
	write(t, open1(t, path, 8, 1), "3rd\n")
	want(t, path, "3rd\n")
	want(t, path+".1", "1st\n2nd\n")
}

// Another program may rename the file and have it opened again, as logrotate does.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit")
	f := open1(t, path, 100, 1)
	write(t, f, "1st\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "2nd\n")
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	write(t, f, "3rd\n")
	want(t, path+".old", "1st\n2nd\n")
	want(t, path, "3rd\n")

	// Without being told it notices by itself, after a while.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "too soon\n")
	f.seen = f.seen.Add(-recheck)
	write(t, f, "3rd\n")
	want(t, path+".old", "3rd\ntoo soon\n")
	want(t, path, "3rd\n")
	f.seen = f.seen.Add(-recheck)
	write(t, f, "still here\n")
	want(t, path, "3rd\nstill here\n")

	// Where that is not possible, it goes on with what it has.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); err == nil {
		t.Error("a folder was opened")
	}
	write(t, f, "4th\n")
	want(t, path+".old", "3rd\nstill here\n4th\n")
}

// A file that cannot be renamed grows, one that cannot be opened is tried again with
// each line.
func TestRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	inTheWay := filepath.Join(path+".1", "folder")
	if err := os.MkdirAll(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	f := open1(t, path, 8, 1)
	write(t, f, "1st\n", "2nd\n")
	for range 2 {
		if n, err := f.Write([]byte("3rd\n")); n != 4 || err == nil {
			t.Errorf("%d bytes, %v; want 4 and an error", n, err)
		}
	}
	want(t, path, "1st\n2nd\n3rd\n3rd\n")
	if err := os.RemoveAll(path + ".1"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "4th\n")
	want(t, path, "4th\n")
	want(t, path+".1", "1st\n2nd\n3rd\n3rd\n")

	f.file.Close()
	f.file = nil
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Write([]byte("5th\n")); n != 0 || err == nil {
		t.Errorf("%d bytes, %v; want none and an error", n, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, f, "6th\n")
	want(t, path, "6th\n")
}

// What is left of a line that could not be written ends before the next one.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	f := open1(t, path, 100, 1)
	write(t, f, "half of a li")
	f.torn = true
	write(t, f, "2nd\n", "3rd\n")
	want(t, path, "half of a li\n2nd\n3rd\n")
}

// What is not itself a file is not renamed: /dev/stdout, for one.
func TestLink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "file"), path); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	write(t, open1(t, path, 8, 1), "1st\n", "2nd\n", "3rd\n")
	want(t, filepath.Join(dir, "file"), "1st\n2nd\n3rd\n")
	if _, err := os.Stat(path + ".1"); err == nil {
		t.Error("a link was renamed")
	}
}

func TestClosed(t *testing.T) {
	f := open1(t, filepath.Join(t.TempDir(), "audit"), 100, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x\n")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a closed file says %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "missing", "audit"), 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
