package program

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/config"
	"culvert/test/bubble"
)

// TestChanges follows files through what editors, mounts and people do to them.
func TestChanges(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "server.yaml")
	identities := filepath.Join(dir, "identities")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, content string) {
		t.Helper()
		must(os.WriteFile(path, []byte(content), 0o600))
	}
	// age sets a file's time, so that no two states of it are alike on a system
	// with a coarse clock.
	clock := time.Now().Add(-time.Hour)
	age := func(path string) {
		t.Helper()
		clock = clock.Add(time.Second)
		must(os.Chtimes(path, clock, clock))
	}
	write(file, "a")
	files := inUse([]string{file, identities})
	now := func() bool { return files.settled(look([]string{file, identities})) }

	for _, step := range []struct {
		name string
		do   func()
		want []bool // at the looks that follow
	}{
		{"nothing", func() {}, []bool{false, false}},
		{"written", func() { write(file, "bb"); age(file) }, []bool{false, true, false}},
		{"truncated", func() { write(file, ""); age(file) }, []bool{false}},
		{"and written", func() { write(file, "ccc"); age(file) }, []bool{false, true, false}},
		{"touched", func() { age(file) }, []bool{false, true, false}},
		{"renamed over", func() {
			write(file+"~", "ddd")
			must(os.Chtimes(file+"~", clock, clock))
			must(os.Rename(file+"~", file))
		}, []bool{false, true, false}},
		{"removed", func() { must(os.Remove(file)) }, []bool{false}},
		{"and there again", func() { write(file, "e"); age(file) }, []bool{false, true, false}},
		{"a directory", func() { must(os.Mkdir(identities, 0o700)) }, []bool{false, true, false}},
		{"a file in it", func() { write(filepath.Join(identities, "alice.yaml"), "a") }, []bool{false, true, false}},
		{"which changes", func() { write(filepath.Join(identities, "alice.yaml"), "aa") }, []bool{false, true, false}},
		{"and goes", func() { must(os.Remove(filepath.Join(identities, "alice.yaml"))) }, []bool{false, true, false}},
	} {
		step.do()
		for i, want := range step.want {
			if got := now(); got != want {
				t.Fatalf("%s: settled at look %d: %v, want %v", step.name, i+1, got, want)
			}
		}
	}

	// As in a container, where the link to a directory is turned.
	for _, name := range []string{"one", "two"} {
		must(os.Mkdir(filepath.Join(dir, name), 0o700))
		write(filepath.Join(dir, name, "server.yaml"), "same")
	}
	link := filepath.Join(dir, "now")
	if err := os.Symlink("one", link); err != nil {
		t.Skip("no symbolic links:", err)
	}
	linked := []string{filepath.Join(link, "server.yaml")}
	files = inUse(linked)
	must(os.Remove(link))
	must(os.Symlink("two", link))
	if files.settled(look(linked)) || !files.settled(look(linked)) {
		t.Error("a turned link is no change")
	}
}

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	hangup, tick := make(chan os.Signal), make(chan time.Time)
	answers := []struct {
		warnings []string
		err      error
	}{
		{[]string{"known", "new"}, nil},
		{nil, config.Problems{{File: "f", Line: 3, Key: "k", What: "is bad"}, {File: "f", Line: 4, What: "is\nworse"}}},
		{[]string{"new"}, nil},
		{nil, errors.New("failed")},
	}
	done, began := 0, make(chan struct{}, len(answers))
	reload := &Reload{
		Files: func() []string { return []string{file} },
		Parts: []Part{{Do: func(context.Context) ([]string, error) {
			done++
			began <- struct{}{}
			return answers[done-1].warnings, answers[done-1].err
		}}},
	}
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		reload.run(ctx, NewLogger(&log, "text", 0), inUse(reload.Files()), []string{"known"}, hangup, tick)
		close(ended)
	}()
	hangup <- syscall.SIGHUP
	<-began // what is written only now is a change
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Error(err)
	}
	for range 4 { // of which the second finds it settled, and the others nothing new
		tick <- time.Now()
	}
	hangup <- syscall.SIGHUP
	hangup <- syscall.SIGHUP
	cancel()
	<-ended
	wantLog(t, log.String(),
		"level=WARN msg=new",
		`level=INFO msg="configuration reloaded"`,
		`level=WARN msg="configuration not reloaded" error="f:3: k: is bad"`,
		`level=WARN msg="configuration not reloaded" error="f:4: is; worse"`,
		`level=INFO msg="configuration reloaded"`,
		`level=WARN msg="configuration not reloaded" error=failed`)
}

// wantLog compares a log with these lines, apart from the time.
func wantLog(t *testing.T, log string, want ...string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(log) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A part that fails keeps no other from being reloaded. It alone is tried again, although
// no file changes, and the log tells each failure once.
func TestReloadTriesAgain(t *testing.T) {
	hangup, tick := make(chan os.Signal), make(chan time.Time)
	few := &os.PathError{Op: "open", Path: "key.pem", Err: syscall.EMFILE}
	answers := map[string][]error{
		"identities": {nil, nil},
		"key":        {few, few, few, errors.New("no pair"), errors.New("no pair"), nil, nil},
		"audit":      {few, nil, nil},
	}
	reload := &Reload{Files: func() []string { return nil }}
	for _, name := range []string{"identities", "key", "audit"} {
		reload.Parts = append(reload.Parts, Part{name, func(context.Context) ([]string, error) {
			if len(answers[name]) == 0 {
				t.Errorf("%s is reloaded too often", name)
				return nil, nil
			}
			err := answers[name][0]
			answers[name] = answers[name][1:]
			return nil, err
		}})
	}
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		reload.run(ctx, NewLogger(&log, "text", 0), inUse(nil), nil, hangup, tick)
		close(ended)
	}()
	hangup <- syscall.SIGHUP
	for range 6 * retryLooks { // of which the last change nothing
		tick <- time.Now()
	}
	hangup <- syscall.SIGHUP
	cancel()
	<-ended
	for name, left := range answers {
		if len(left) > 0 {
			t.Errorf("%s: %d tries too few", name, len(left))
		}
	}
	wantLog(t, log.String(),
		`level=WARN msg="configuration not reloaded" part=key error="open key.pem: too many open files"`,
		`level=WARN msg="configuration not reloaded" part=audit error="open key.pem: too many open files"`,
		`level=INFO msg="configuration reloaded in part" parts=identities`,
		`level=INFO msg="configuration reloaded in part" parts=audit`,
		`level=WARN msg="configuration not reloaded" part=key error="no pair"`,
		`level=INFO msg="configuration reloaded"`,
		`level=INFO msg="configuration reloaded"`)
}

// A file that is being written while a part fails is not read before it is written.
func TestReloadWaitsForAFile(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "tokens")
		hangup, tick := make(chan os.Signal), make(chan time.Time)
		var read []string
		reload := &Reload{Files: func() []string { return []string{file} }, Parts: []Part{{Do: func(context.Context) ([]string, error) {
			text, err := os.ReadFile(file)
			read = append(read, string(text))
			return nil, err
		}}}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			reload.run(ctx, NewLogger(t.Output(), "text", 0), inUse(reload.Files()), nil, hangup, tick)
			close(ended)
		}()
		hangup <- syscall.SIGHUP
		look := func() {
			tick <- time.Now()
			synctest.Wait()
		}
		for range retryLooks - 1 {
			look()
		}
		for _, text := range []string{"a", "a\nb", "a\nb\nc"} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Error(err)
			}
			look()
		}
		look()
		cancel()
		<-ended
		if want := []string{"", "a\nb\nc"}; !slices.Equal(read, want) {
			t.Errorf("read %q, want %q", read, want)
		}
	})
}
