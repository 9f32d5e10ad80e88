//go:build !windows

package main

import (
	"context"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/term"
)

// shell is a command line as the system's shell runs it. The end of ctx kills the shell
// and every process that it started: they are a process group of their own. At a
// terminal they stay in ours and only the shell is killed, since a process of another
// group cannot ask there for a password.
func shell(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	}
	return cmd
}
