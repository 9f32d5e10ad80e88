//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// agents are the processes of a contender.
type agents struct {
	dir   string // for what they log, and their configuration
	procs []*exec.Cmd
}

// start runs a program; it is ended by close, or with this one.
func (a *agents) start(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	log, err := os.Create(filepath.Join(a.dir, fmt.Sprintf("agent%d.log", len(a.procs))))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	a.procs = append(a.procs, cmd)
	return nil
}

func (a *agents) close() {
	for _, cmd := range a.procs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// said is what the agents have logged, for errors.
func (a *agents) said() string {
	var b strings.Builder
	for i := range a.procs {
		text, _ := os.ReadFile(filepath.Join(a.dir, fmt.Sprintf("agent%d.log", i)))
		b.Write(text[max(0, len(text)-2000):])
	}
	return b.String()
}

// tick is the unit of times in /proc/PID/stat, USER_HZ, the same on every Linux.
const tick = 10 * time.Millisecond

// cpu is the time that the agents have used so far.
func (a *agents) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, cmd := range a.procs {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		// Fields are counted from behind the program's name, which may hold spaces (proc(5)).
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) < 13 {
			return 0, errors.New("short /proc/PID/stat")
		}
		for _, f := range fields[11:13] { // user and system
			n, err := strconv.ParseInt(string(f), 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(n) * tick
		}
	}
	return sum, nil
}

// memory is what the agents hold of it together, in bytes.
func (a *agents) memory() (int64, error) {
	var sum int64
	for _, cmd := range a.procs {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		var size, resident int64
		if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
			return 0, err
		}
		sum += resident * int64(os.Getpagesize())
	}
	return sum, nil
}
