package test

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/test/agent"
	"culvert/test/netfault"
)

// patience is how long a test waits for what should happen soon, on a busy machine.
const patience = 15 * time.Second

const token = "a-token-of-the-end-to-end-tests"

var (
	programs agent.Programs // built like this test: with the race detector or without
	measured agent.Programs // always without
)

func TestMain(m *testing.M) {
	// Most tests wait for a clock or a peer rather than for a core.
	if err := flag.Set("test.parallel", "6"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "culvert-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if measured, err = agent.Build(dir, false); err == nil {
		programs = measured
		if agent.Race {
			programs, err = agent.Build(filepath.Join(dir, "race"), true)
		}
	}
	if err != nil {
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

// full tells whether to use the sizes that the product promises or ones that are over sooner.
func full() bool {
	slow, ci := os.Getenv("CULVERT_SLOW"), os.Getenv("CI")
	return slow == "1" || ci == "true" && slow != "0"
}

// tokenFile writes a credential to a file of its own and returns its path.
func tokenFile(t *testing.T, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	return port
}

// rig is a server, a relay to it, and a client whose session over the relay is open.
type rig struct {
	t              *testing.T
	programs       agent.Programs
	server, client *agent.Process
	relay          *netfault.Relay
	address        string // of the server
}

// config says how a rig differs from the usual one.
type config struct {
	programs *agent.Programs // nil: those built like the test
	server   []string        // more flags
	client   []string
}

func newRig(t *testing.T, c config) *rig {
	t.Helper()
	r := &rig{t: t, programs: programs}
	if c.programs != nil {
		r.programs = *c.programs
	}
	r.startServer("127.0.0.1:0", c.server...)
	relay, err := netfault.Listen(r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	r.relay = relay
	r.startClient("ws://"+relay.Addr(), c.client...)
	return r
}

// startServer starts the rig's server, or the one that takes its place.
func (r *rig) startServer(listen string, flags ...string) {
	r.t.Helper()
	r.server = startServer(r.t, r.programs, append([]string{
		"--listen", listen, "--token-file", tokenFile(r.t, token),
	}, flags...)...)
	r.address = r.server.Find(patience, "server listening").Attrs["address"]
}

// startClient starts the rig's client, or the one that takes its place, and waits for its session.
func (r *rig) startClient(url string, flags ...string) {
	r.t.Helper()
	r.client = startClient(r.t, r.programs, append([]string{
		"--server", url, "--token-file", tokenFile(r.t, token),
	}, flags...)...)
	r.client.Find(patience, "session opened")
}

func startServer(t *testing.T, p agent.Programs, args ...string) *agent.Process {
	t.Helper()
	return agent.Start(t, "server", agent.Command(p.Server, args...))
}

func startClient(t *testing.T, p agent.Programs, args ...string) *agent.Process {
	t.Helper()
	return agent.Start(t, "client", agent.Command(p.Client, args...))
}

// forward is the address that the client's forward to target listens on, at whichever end.
func (r *rig) forward(target string) string {
	r.t.Helper()
	return r.client.Find(patience, "forward listening", "forward", target).Attrs["address"]
}

// local and remote are the flags that forward a port of the system's choice to target.
func local(target string) []string  { return []string{"-L", "0:" + target} }
func remote(target string) []string { return []string{"-R", "0:" + target} }
