package middlebox

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/test/agent"
)

// patience is how long a test waits for what should happen soon, on a busy machine.
const patience = 15 * time.Second

const token = "a-token-of-the-middlebox-tests"

var programs agent.Programs // built like this test: with the race detector or without

func TestMain(m *testing.M) {
	// Most tests wait for a clock rather than for a core.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "culvert-middlebox-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if programs, err = agent.Build(dir, agent.Race); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// newServer starts a server of ours on loopback and returns its port and the file with its token.
func newServer(t *testing.T, flags ...string) (port, tokenFile string) {
	t.Helper()
	tokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--listen", "127.0.0.1:0", "--token-file", tokenFile}, flags...)
	server := agent.Start(t, "server", agent.Command(programs.Server, args...))
	return portOf(server.Find(patience, "server listening").Attrs["address"]), tokenFile
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// newClient starts a client with a forward to target, waits for its session, and returns it with the
// address of the forward.
func newClient(t *testing.T, env []string, target string, flags ...string) (client *agent.Process, forward string) {
	t.Helper()
	cmd := agent.Command(programs.Client, append(flags, "-L", "0:"+target)...)
	cmd.Env = append(cmd.Env, env...)
	client = agent.Start(t, "client", cmd)
	client.Find(patience, "session opened")
	return client, client.Find(patience, "forward listening", "forward", target).Attrs["address"]
}

// fails runs a client that cannot connect, and returns its exit code and what it said, which must be one
// line about the reason, and must not hold a secret.
func fails(t *testing.T, env []string, secrets []string, flags ...string) (line string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, programs.Client, append(flags, "-L", "0:127.0.0.1:9")...)
	cmd.Env = agent.Environment(env...)
	cmd.Stderr = &out
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("exit code %d\n%s", cmd.ProcessState.ExitCode(), &out)
	if n := strings.Count(out.String(), "culvert-client: "); n != 1 {
		t.Errorf("%d lines of reasons", n)
	}
	for _, secret := range secrets {
		if strings.Contains(out.String(), secret) {
			t.Error("a secret was shown")
		}
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[len(lines)-1], cmd.ProcessState.ExitCode()
}

// website serves one text on loopback and returns its address.
func website(t *testing.T, text string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// get fetches http://address/.
func get(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
