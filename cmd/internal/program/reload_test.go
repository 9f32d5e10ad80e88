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
	"time"

	"culvert/config"
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
		Do: func(context.Context) ([]string, error) {
			done++
			began <- struct{}{}
			return answers[done-1].warnings, answers[done-1].err
		},
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
	var got []string
	for line := range strings.Lines(log.String()) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, text)
	}
	want := []string{
		"level=WARN msg=new",
		`level=INFO msg="configuration reloaded"`,
		`level=WARN msg="configuration not reloaded" error="f:3: k: is bad"`,
		`level=WARN msg="configuration not reloaded" error="f:4: is; worse"`,
		`level=INFO msg="configuration reloaded"`,
		`level=WARN msg="configuration not reloaded" error=failed`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
