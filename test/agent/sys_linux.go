package agent

import (
	"os/exec"
	"syscall"
)

// sysProcAttr lets a process die with the test that started it, also when the test is killed.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// RunAs makes cmd run as another user, which needs root.
func RunAs(cmd *exec.Cmd, uid, gid uint32) *exec.Cmd {
	cmd.SysProcAttr = sysProcAttr()
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return cmd
}
