package program

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"culvert/config"
)

// pollInterval is how often files are looked at. Asking the system to tell would
// need a library, and fails where a directory is mounted or a link is turned.
const pollInterval = time.Second

// retryLooks is after how many looks at the files a part that failed is tried again: a
// failure may have other reasons than the files, such as too few descriptors, and some
// files of a part are not looked at.
const retryLooks = 5

// Reload is how a job that runs becomes what its files say now.
type Reload struct {
	// Files are the files that matter, and directories whose files do. They need
	// not exist. It is asked at every look.
	Files func() []string
	// Parts are reloaded in this order, each whether or not those before it could be. A
	// part that failed is tried again until it succeeds.
	Parts []Part
}

// Part is something that is reloaded as a whole.
type Part struct {
	Name string // for the log; "" if there is no other part
	// Do reads the files of the part again and uses them. It returns what deserves a
	// warning. If it fails it has changed nothing.
	Do func(ctx context.Context) (warnings []string, err error)
}

// run reloads at every hangup, and when files have changed, until ctx ends. The
// files are in use, and the user was told of what warned says.
func (r *Reload) run(ctx context.Context, log *slog.Logger, files changes, warned []string, hangup <-chan os.Signal, tick <-chan time.Time) {
	parts := make([]reloading, len(r.Parts))
	for i, part := range r.Parts {
		parts[i] = reloading{Part: part, warned: warned}
	}
	looks := 0 // since the last reload
	for {
		all := true // and not only what failed
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			files = inUse(r.Files())
		case <-tick:
			looks++
			now := look(r.Files())
			all = files.settled(now)
			if !all && (looks < retryLooks || now != files.used) { // the latter may be half written
				continue
			}
		}
		looks = 0
		reload(ctx, log, parts, all)
	}
}

// reload reloads all parts, or those that failed, and logs what came of it.
func reload(ctx context.Context, log *slog.Logger, parts []reloading, all bool) {
	var done []string
	failed := 0
	for i := range parts {
		p := &parts[i]
		if (all || p.failure != nil) && p.do(ctx, log, all) {
			done = append(done, p.Name)
		}
		if p.failure != nil {
			failed++
		}
	}
	switch {
	case len(done) == 0:
	case failed == 0:
		log.Info("configuration reloaded")
	default:
		log.Info("configuration reloaded in part", "parts", strings.Join(done, ", "))
	}
}

// reloading is a part and what the user was told of it.
type reloading struct {
	Part
	warned  []string // at the last success
	failure error    // of the last try, nil if that was a success
}

// do reloads the part and reports whether that was a success. It logs a failure, but not
// the same one at each retry.
func (p *reloading) do(ctx context.Context, log *slog.Logger, all bool) bool {
	warnings, err := p.Do(ctx)
	told := p.failure
	p.failure = err
	if err != nil {
		if all || told == nil || err.Error() != told.Error() {
			p.tell(log, err)
		}
		return false
	}
	for _, warning := range warnings {
		if !slices.Contains(p.warned, warning) {
			log.Warn(warning)
		}
	}
	p.warned = warnings
	return true
}

// tell logs one line for each thing that is wrong.
func (p *reloading) tell(log *slog.Logger, err error) {
	if p.Name != "" {
		log = log.With("part", p.Name)
	}
	const unchanged = "configuration not reloaded"
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		log.Warn(unchanged, "error", OneLine(err.Error()))
	}
	for _, problem := range problems {
		log.Warn(unchanged, "error", OneLine(problem.String()))
	}
}

// changes tells when files have changed and are no longer being written.
type changes struct {
	used string // what files looked like when they were read
	last string // and at the last look
}

// inUse are files that are about to be read.
func inUse(files []string) changes {
	now := look(files)
	return changes{used: now, last: now}
}

// settled reports whether files look different from when they were read, and the
// same as at the last look. Then they count as read.
func (c *changes) settled(now string) bool {
	if settled := now == c.last && now != c.used; settled {
		c.used = now
		return true
	}
	c.last = now
	return false
}

// look is a text that is another one when one of the files, or a file in one of them
// that is a directory, is another or has changed.
func look(paths []string) string {
	var b strings.Builder
	for _, path := range paths {
		info, err := os.Stat(path)
		describe(&b, path, info, err)
		if err != nil || !info.IsDir() {
			continue
		}
		entries, _ := os.ReadDir(path) // which are none when it fails, and another time some
		for _, entry := range entries {
			file := filepath.Join(path, entry.Name())
			info, err := os.Stat(file) // what a link leads to
			describe(&b, file, info, err)
		}
	}
	return b.String()
}

func describe(b *strings.Builder, path string, info fs.FileInfo, err error) {
	if err != nil {
		fmt.Fprintf(b, "%q %q\n", path, err)
		return
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		fmt.Fprintf(b, "%q %v %v\n", path, info.Mode(), fileID(info)) // its content is read once
		return
	}
	fmt.Fprintf(b, "%q %v %d %d %v\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano(), fileID(info))
}
