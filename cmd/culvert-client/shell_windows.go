package main

import (
	"context"
	"os/exec"
	"syscall"
)

// shell is a command line as the system's shell runs it, which has quoting of its own.
func shell(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "cmd")
	cmd.SysProcAttr = &syscall.SysProcAttr{CmdLine: "cmd /S /C \"" + line + "\""}
	return cmd
}
