package textfile_test

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"culvert/auth/textfile"
)

// A pipe is read once, and its content is there for everyone who reads it again.
func TestPipeIsReadOnce(t *testing.T) {
	for content, want := range map[string]string{"\ufeffsesame\n": "sesame\n", "": "", "0123456789a": "larger than", encoded("a", true): "UTF-16"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/proc/self/fd/%d", r.Fd())
		if _, err := w.WriteString(content); err != nil {
			t.Fatal(err)
		}
		w.Close()
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for range 2 {
					got, err := textfile.Read(path, 10)
					if err != nil {
						got = []byte(err.Error())
					}
					if !bytes.Contains(got, []byte(want)) || want == "" && len(got) > 0 {
						t.Errorf("%q: %q, want %q", content, got, want)
					}
					clear(got) // each reader has a copy of its own
				}
			})
		}
		readers.Wait()
		r.Close() // the next pipe has the same path
	}
}
