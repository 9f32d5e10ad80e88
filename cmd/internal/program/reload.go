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

// Reload is how a job that runs becomes what its files say now.
type Reload struct {
	// Files are the files that matter, and directories whose files do. They need
	// not exist. It is asked at every look.
	Files func() []string
	// Do reads everything again and uses it. It returns what deserves a warning. If
	// it fails it has changed nothing.
	Do func(ctx context.Context) (warnings []string, err error)
}

// run reloads at every hangup, and when files have changed, until ctx ends. The
// files are in use, and the user was told of what warned says.
func (r *Reload) run(ctx context.Context, log *slog.Logger, files changes, warned []string, hangup <-chan os.Signal, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			files = inUse(r.Files())
		case <-tick:
			if !files.settled(look(r.Files())) {
				continue
			}
		}
		warnings, err := r.Do(ctx)
		if err != nil {
			tellProblems(log, err)
			continue
		}
		for _, warning := range warnings {
			if !slices.Contains(warned, warning) {
				log.Warn(warning)
			}
		}
		warned = warnings
		log.Info("configuration reloaded")
	}
}

// tellProblems logs one line for each thing that is wrong.
func tellProblems(log *slog.Logger, err error) {
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
