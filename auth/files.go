package auth

import (
	"fmt"
	"os"
	"runtime"
)

// Writable returns a warning for each of the files and directories that others than its
// owner can change: whoever changes one of them decides who is let in, or where to. Paths
// that are empty or name nothing are passed over.
func Writable(paths ...string) (warnings []string) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || !hasMode(info) || info.Mode().Perm()&writableByOthers == 0 {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("%s: can be changed by others than its owner (mode %04o); chmod go-w it", path, info.Mode().Perm()))
	}
	return warnings
}

const (
	readableByOthers os.FileMode = 0o044
	writableByOthers os.FileMode = 0o022
)

// hasMode reports whether the mode of a file says who can open it. Windows has no such mode
// bits; os invents 0666 and 0444 there. A pipe is as private as whoever made it.
func hasMode(info os.FileInfo) bool {
	return runtime.GOOS != "windows" && (info.Mode().IsRegular() || info.IsDir())
}
