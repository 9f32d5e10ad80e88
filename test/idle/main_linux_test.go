package idle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The target is a process of its own, this program once more: the connections of applications and
// target together are more than one process may have open in many places.
const targetVariable = "CULVERT_TEST_IDLE_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(targetVariable) != "" {
		fmt.Fprintln(os.Stderr, runTarget())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// runTarget echoes, as far as a socket takes it at once, until the process is killed. It needs no
// goroutine for a connection, of which the race detector allows 8,128 only.
func runTarget() error {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(listener, 4096); err != nil {
		return err
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err := watch(listener); err != nil {
		return err
	}
	address := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port}
	fmt.Fprintf(os.Stdout, "{\"msg\":\"target\",\"address\":%q}\n", address)

	events, buf := make([]unix.EpollEvent, 128), make([]byte, 4096)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, event := range events[:max(n, 0)] {
			fd := int(event.Fd)
			if fd == listener {
				if fd, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
					err = watch(fd)
				}
				if err != nil && !errors.Is(err, unix.EAGAIN) {
					return err
				}
				continue
			}
			if n, err := unix.Read(fd, buf); err == nil && n > 0 {
				if _, err := unix.Write(fd, buf[:n]); err == nil {
					continue
				}
			}
			_ = unix.Close(fd) // which also ends the watch
		}
	}
}
