package middlebox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// Addresses of the two namespaces of a test.
const (
	nearAddress = "10.77.0.1"
	farAddress  = "10.77.0.2"
	nets        = "10.77.0.0/24"
)

// namespace is a network of the test's own, in which programs can be started and connections made.
type namespace struct {
	t    *testing.T
	name string
}

// newNamespaces makes two that a cable connects: near, where the client is, and far, where the server is.
// It takes root; without, the test is skipped, or fails in CI.
func newNamespaces(t *testing.T) (near, far *namespace) {
	t.Helper()
	thirdparty.Program(t, "ip")
	unique := fmt.Sprintf("culvert-%d-%s", os.Getpid(), strings.ToLower(filepath.Base(t.TempDir())))
	all := []*namespace{{t, t.Name() + "-" + unique + "-near"}, {t, t.Name() + "-" + unique + "-far"}}
	for _, n := range all {
		n.name = strings.ReplaceAll(n.name, "/", "-")
		if out, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("no network namespace: %v: %s", err, out)
			}
			t.Skipf("no network namespace: %v: %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.name).Run() })
		n.ip("link", "set", "lo", "up")
	}
	near, far = all[0], all[1]
	near.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far.name)
	for n, address := range map[*namespace]string{near: nearAddress, far: farAddress} {
		n.ip("addr", "add", address+"/24", "dev", "cable")
		n.ip("link", "set", "cable", "up")
	}
	return near, far
}

// ip runs ip(8) in n.
func (n *namespace) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", append([]string{"-n", n.name}, args...)...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// command is cmd inside of n.
func (n *namespace) command(cmd *exec.Cmd) *exec.Cmd {
	inside := exec.Command("ip", append([]string{"netns", "exec", n.name}, cmd.Args...)...)
	inside.Env = cmd.Env
	return inside
}

// run runs a program in n to its end.
func (n *namespace) run(stdin string, name string, args ...string) {
	n.t.Helper()
	cmd := n.command(exec.Command(name, args...))
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// inside calls f on a thread that is in n meanwhile; sockets that f makes belong there. The thread must
// not end: what was started from it would end with it.
func inside[T any](n *namespace, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() { done <- r }()
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			r.err = err
			return
		}
		defer home.Close()
		there, err := os.Open("/run/netns/" + n.name)
		if err != nil {
			r.err = err
			return
		}
		defer there.Close()
		if r.err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); r.err != nil {
			return
		}
		r.value, r.err = f()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // nothing may run on this thread any more
		}
		runtime.UnlockOSThread()
	}()
	r := <-done
	return r.value, r.err
}

func (n *namespace) place() place {
	return place{
		listen: func(address string) (net.Listener, error) {
			return inside(n, func() (net.Listener, error) { return net.Listen("tcp4", address) })
		},
		dial: func(address string) (net.Conn, error) {
			return inside(n, func() (net.Conn, error) { return net.DialTimeout("tcp4", address, patience) })
		},
	}
}

// serverIn runs a server in far and returns the flags of its clients.
func serverIn(far *namespace) (flags []string) {
	t := far.t
	t.Helper()
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := agent.Start(t, "server", far.command(agent.Command(programs.Server,
		"--listen", farAddress+":0", "--token-file", tokenFile)))
	return []string{
		"--server", "ws://" + server.Find(patience, "server listening").Attrs["address"],
		"--token-file", tokenFile, "--allow-plaintext",
	}
}

// start runs a server in far and a client in near with forwards to targets, and waits for the session.
func start(near, far *namespace, targets []string, flags ...string) (client *agent.Process) {
	t := near.t
	t.Helper()
	args := append(serverIn(far), flags...)
	for _, target := range targets {
		args = append(args, "-L", "0:"+target)
	}
	client = agent.Start(t, "client", near.command(agent.Command(programs.Client, args...)))
	client.Find(patience, "session opened")
	return client
}

// forgetful makes a firewall of n that forgets flows after 5 s and drops what it does not know, without a
// word.
func (n *namespace) forgetful() {
	n.t.Helper()
	thirdparty.Program(n.t, "nft")
	n.run(`
table ip box {
	chain in {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		ct state new tcp flags & (syn | ack) == syn accept
	}
	chain out {
		type filter hook output priority 0; policy drop;
		oif lo accept
		ct state established,related accept
	}
}`, "nft", "-f", "-")
	n.run("", "sysctl", "-q", "-w", "net.netfilter.nf_conntrack_tcp_loose=0", "net.netfilter.nf_conntrack_tcp_timeout_established=5")
}

func TestFirewallForgets(t *testing.T) {
	t.Parallel()
	near, far := newNamespaces(t)
	far.forgetful()
	echoing, slow := far.place().serve(t, echo), far.place().serve(t, pieces(100_000, 12*time.Second, 60*time.Second))
	// A limit is believed when it has cut two carriers. With this heartbeat it has within the silence.
	client := start(near, far, []string{echoing, slow}, "--heartbeat", "6s")
	near.place().staysUsable(t, client, echoing, slow, 4) // nobody says what the limit is: it is tried in thirds, one of them twice
}

// The doctor tells a box that forgets from one that closes.
func TestDoctorFirewall(t *testing.T) {
	t.Parallel()
	near, far := newNamespaces(t)
	far.forgetful()
	stdout, _, code := diagnose(t, near.command(agent.Command(programs.Client, append([]string{"doctor", "--long", "17s"}, serverIn(far)...)...)))
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{
		"lifetime      ok    ",
		"idle limit    warn  a connection that was idle for 8s was forgotten without a word; one that was for 4s was not",
		"- something on the way silently forgets connections that are idle for 8s: give --heartbeat 5.3s",
		"A tunnel works.",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not there", want)
		}
	}
}

// The route is gone for 20 s. When it is there again all streams go on within two seconds, whether the
// client still believes in its carrier or waits to dial again.
func TestRouteIsPulled(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"unnoticed": nil,
		"waiting":   {"--heartbeat", "1s", "--heartbeat-timeout", "2s", "--max-backoff", "1h"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := newNamespaces(t)
			echoing := far.place().serve(t, echo)
			client := start(near, far, []string{echoing}, flags...)
			at := client.Find(patience, "forward listening").Attrs["address"]
			var streams []net.Conn
			for range 3 {
				conn := near.place().connect(t, at)
				ask(t, conn, "before")
				streams = append(streams, conn)
			}
			near.ip("route", "del", nets)
			streams[0].Write([]byte("under way"))
			<-time.After(20 * time.Second)
			near.ip("route", "add", nets, "dev", "cable", "src", nearAddress)
			back := time.Now()
			word := make([]byte, len("under way"))
			streams[0].SetDeadline(back.Add(patience))
			if _, err := streams[0].Read(word); err != nil {
				t.Fatal(err)
			}
			for _, conn := range streams[1:] {
				ask(t, conn, "after")
			}
			took := time.Since(back)
			t.Logf("all streams go on %v after the route was there again; the session was lost %d times", took, client.Count("session lost"))
			if took > 2*time.Second {
				t.Errorf("it took %v after the route was there again", took)
			}
		})
	}
}
