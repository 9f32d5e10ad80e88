//go:build unix

package program

import (
	"io/fs"
	"syscall"
)

// fileID tells a file from another one that has taken its place.
func fileID(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Ino) //nolint:unconvert // is another type elsewhere
	}
	return 0
}
