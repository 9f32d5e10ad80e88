package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Line is one line that a process wrote, to whichever of its two outputs.
type Line struct {
	Text  string
	Msg   string            // of a JSON log line
	Level string            // of a JSON log line
	Attrs map[string]string // the rest of a JSON log line
	At    time.Time         // when it was read
}

func (l Line) String() string { return l.Text }

// Process is a running program whose output is read line by line.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for and its output read

	mu     sync.Mutex
	lines  []Line
	cursor int           // lines that Expect has passed
	news   chan struct{} // closed and replaced whenever there is a line
}

// Start runs cmd until the end of the test at the latest. Its output goes to the test's log under name,
// and a data race or panic in it fails the test.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = sysProcAttr()
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		_ = out.Close()
		t.Fatal(err)
	}
	p := &Process{t: t, name: name, cmd: cmd, done: make(chan struct{}), news: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.read(out)
		_ = out.Close()
		_ = cmd.Wait() // the exit code is asked for where it matters
	}()
	t.Cleanup(func() {
		p.Kill()
		for _, line := range p.Lines() {
			if strings.Contains(line.Text, "DATA RACE") || strings.HasPrefix(line.Text, "panic:") ||
				strings.HasPrefix(line.Text, "fatal error:") {
				t.Errorf("%s: %s", name, line)
			}
		}
	})
	return p
}

func (p *Process) read(out io.Reader) {
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := parse(scanner.Text())
		fmt.Fprintf(p.t.Output(), "%s %s| %s\n", line.At.Format("05.000"), p.name, line.Text)
		p.mu.Lock()
		p.lines = append(p.lines, line)
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, out)
}

func parse(text string) Line {
	line := Line{Text: text, At: time.Now()}
	var fields map[string]any
	if !strings.HasPrefix(text, "{") || json.Unmarshal([]byte(text), &fields) != nil {
		return line
	}
	line.Attrs = make(map[string]string, len(fields))
	for key, value := range fields {
		switch key {
		case "time":
		case "msg":
			line.Msg = fmt.Sprint(value)
		case "level":
			line.Level = fmt.Sprint(value)
		default:
			line.Attrs[key] = fmt.Sprint(value)
		}
	}
	return line
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Lines is everything written so far.
func (p *Process) Lines() []Line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// Count is how many lines so far carry the log message msg.
func (p *Process) Count(msg string) int {
	n := 0
	for _, line := range p.Lines() {
		if line.Msg == msg {
			n++
		}
	}
	return n
}

// Expect waits for a log line with the message msg and, pairwise, attributes that contain a text, among
// the lines after the one that the last Expect returned. The test fails when none comes in time.
func (p *Process) Expect(within time.Duration, msg string, attrs ...string) Line {
	p.t.Helper()
	line, ok := p.await(within, true, matching(msg, attrs))
	if !ok {
		p.t.Fatalf("%s: no %q %q within %v", p.name, msg, attrs, within)
	}
	return line
}

// Find is Expect for what may have come in any order: it looks at every line and passes none.
func (p *Process) Find(within time.Duration, msg string, attrs ...string) Line {
	p.t.Helper()
	line, ok := p.await(within, false, matching(msg, attrs))
	if !ok {
		p.t.Fatalf("%s: no %q %q within %v", p.name, msg, attrs, within)
	}
	return line
}

func matching(msg string, attrs []string) func(Line) bool {
	return func(l Line) bool {
		if l.Msg != msg {
			return false
		}
		for i := 0; i+1 < len(attrs); i += 2 {
			if !strings.Contains(l.Attrs[attrs[i]], attrs[i+1]) {
				return false
			}
		}
		return true
	}
}

// ExpectText waits, like Expect, for a line that contains text.
func (p *Process) ExpectText(within time.Duration, text string) Line {
	p.t.Helper()
	line, ok := p.await(within, true, func(l Line) bool { return strings.Contains(l.Text, text) })
	if !ok {
		p.t.Fatalf("%s: no line with %q within %v", p.name, text, within)
	}
	return line
}

// await waits for a matching line: the next one, which moves the cursor past it, or any.
func (p *Process) await(within time.Duration, next bool, match func(Line) bool) (Line, bool) {
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	ended := false
	for {
		p.mu.Lock()
		from := 0
		if next {
			from = p.cursor
		}
		if i := slices.IndexFunc(p.lines[from:], match); i >= 0 {
			line := p.lines[from+i]
			if next {
				p.cursor = from + i + 1
			}
			p.mu.Unlock()
			return line, true
		}
		news := p.news
		p.mu.Unlock()
		if ended {
			return Line{}, false
		}
		select {
		case <-news:
		case <-p.done:
			ended = true
		case <-timeout.C:
			return Line{}, false
		}
	}
}

// Forget moves past everything written so far: the next Expect looks at later lines only.
func (p *Process) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cursor = len(p.lines)
}

// Signal sends sig to the process.
func (p *Process) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("%s: signal %v: %v", p.name, sig, err)
	}
}

// Kill ends the process at once, if it still runs, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// Stop asks the process to end and returns its exit code, like Exit.
func (p *Process) Stop(within time.Duration) int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.Exit(within)
}

// Exit waits for the process to end by itself and returns its exit code, -1 if a signal ended it.
func (p *Process) Exit(within time.Duration) int {
	p.t.Helper()
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-timeout.C:
		p.t.Fatalf("%s: still running after %v", p.name, within)
		return 0
	}
}

// Done is closed when the process has ended and its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// RSS is the process's resident memory in bytes. It needs Linux's /proc.
func (p *Process) RSS() int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kib << 10
		}
	}
	p.t.Fatalf("%s: no VmRSS", p.name)
	return 0
}
