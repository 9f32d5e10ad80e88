//go:build !linux

package agent

import (
	"os/exec"
	"syscall"
)

func sysProcAttr() *syscall.SysProcAttr { return nil }

// RunAs is for Linux only.
func RunAs(cmd *exec.Cmd, _, _ uint32) *exec.Cmd { return cmd }
