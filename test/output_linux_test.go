package test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/netfault"
	"culvert/test/thirdparty"
)

// losing are ways in which everything that a program writes is lost.
var losing = []struct {
	name  string
	shell string // runs the program
	open  func(t *testing.T) *os.File
}{
	{"no reader", `exec "$@"`, pipeWithoutReader},
	{"no reader, SIGPIPE ignored", `trap "" PIPE; exec "$@"`, pipeWithoutReader},
	{"full disk", `exec "$@"`, func(t *testing.T) *os.File {
		t.Helper()
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}},
}

func pipeWithoutReader(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	return w
}

// A log or an audit log that cannot be written ends neither agent, and what the client's token command
// writes to it does not end that.
func TestLostLogs(t *testing.T) {
	t.Parallel()
	for _, lose := range losing {
		t.Run(lose.name, func(t *testing.T) {
			t.Parallel()
			out := lose.open(t)
			defer out.Close()
			start := func(path string, args ...string) *exec.Cmd {
				cmd := exec.Command("sh", append([]string{"-c", lose.shell, "sh", path, "--log-level", "debug"}, args...)...)
				cmd.Env = agent.Environment()
				cmd.Stdout, cmd.Stderr = out, out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() }) // if the test has failed
				return cmd
			}
			target, tokens := serve(t, echo), tokenFile(t, token)
			address, entrance := "127.0.0.1:"+thirdparty.FreePort(t), thirdparty.FreePort(t)
			server := start(programs.Server, "--listen", address, "--token-file", tokens, "--audit", "-")
			relay, err := netfault.Listen(address)
			if err != nil {
				t.Fatal(err)
			}
			defer relay.Close()
			client := start(programs.Client, "--server", "ws://"+relay.Addr(), "--retry-initial", "--max-backoff", "200ms",
				"--token-command", "echo about to print it >&2; cat "+tokens, "-L", entrance+":"+target)

			var conn net.Conn
			waitFor(t, "the forward", func() bool {
				conn, err = net.Dial("tcp", "127.0.0.1:"+entrance)
				return err == nil
			})
			defer conn.Close()
			extend(t, conn, patience)
			mustPing(t, conn, "before a cut")
			waitFor(t, "a cut", func() bool { return relay.Cut() > 0 })
			mustPing(t, conn, "after it")
			_ = conn.Close()
			for name, cmd := range map[string]*exec.Cmd{"client": client, "server": server} {
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := cmd.Wait(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// What a program has to say about its failure may be lost, the exit code may not. A command whose output
// is lost has failed.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	for _, lose := range losing {
		for _, c := range []struct {
			args []string
			code int // when both outputs are lost
		}{
			{[]string{programs.Server, "--bogus"}, exitUsage},
			{[]string{programs.Client, "--server", "ws://192.0.2.1", "--token", token}, exitRefused}, // plain text
			{[]string{programs.Server, "--version"}, 1},
			{[]string{programs.Client, "--help"}, 1},
			{[]string{programs.Server, "token", "new"}, 1},
			{[]string{programs.Client, "demo", "--cut-every", "100ms"}, 1}, // which would go on until Ctrl-C
		} {
			ctx, cancel := context.WithTimeout(t.Context(), patience+10*time.Second)
			cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", lose.shell, "sh"}, c.args...)...)
			cmd.Env = agent.Environment()
			out := lose.open(t)
			cmd.Stdout, cmd.Stderr = out, out
			err := cmd.Run()
			_ = out.Close()
			cancel()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != c.code {
				t.Errorf("%s: %q: %v, want exit code %d", lose.name, c.args[1:], err, c.code)
			}
		}
	}
	// With standard error alone left, one line says what happened.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := exec.Command(programs.Server, "--version")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = full, &said
	if err := cmd.Run(); err == nil || said.String() != "culvert-server: standard output: write /dev/stdout: no space left on device\n" {
		t.Errorf("%v, %q", err, &said)
	}
}
