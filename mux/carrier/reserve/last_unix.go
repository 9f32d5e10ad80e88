//go:build unix

package reserve

import "syscall"

// isLast reports whether fd is one of the last descriptors that the process may have.
func isLast(fd uintptr) bool {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return false
	}
	most := uint64(limit.Cur) //nolint:unconvert // is another type elsewhere
	return uint64(fd) >= most-min(Descriptors, most/4)
}
