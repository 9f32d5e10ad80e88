package middlebox

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// haproxy is a load balancer in front of one server.
type haproxy struct {
	address string
	admin   string // socket
}

func newHAProxy(t *testing.T, port, timeouts string) *haproxy {
	t.Helper()
	program := thirdparty.Program(t, "haproxy")
	dir := t.TempDir()
	h := &haproxy{address: "127.0.0.1:" + thirdparty.FreePort(t), admin: filepath.Join(dir, "admin")}
	file := thirdparty.Config(t, dir, "haproxy.cfg", `
global
	stats socket DIR/admin level admin
defaults
	mode http
	timeout connect 5s
	timeout client 10s
	timeout server 10s
	`+timeouts+`
listen box
	bind ADDRESS
	server culvert 127.0.0.1:PORT
`, "ADDRESS", h.address, "PORT", port)
	agent.Start(t, "haproxy", exec.Command(program, "-W", "-db", "-f", file)).ExpectText(patience, "Loading success")
	return h
}

// command sends a line to the admin socket and returns the answer's lines.
func (h *haproxy) command(line string) (answer []string, err error) {
	conn, err := net.Dial("unix", h.admin)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return nil, err
	}
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		answer = append(answer, scanner.Text())
	}
	return answer, nil
}

var sessionAge = regexp.MustCompile(`^(0x[0-9a-f]+): .*\bfe=box .*\bage=(\S+)`)

// endAt ends each connection at an age, until the test ends, and counts them. HAProxy has no setting for
// that, only this command.
func (h *haproxy) endAt(t *testing.T, age time.Duration) (ended func() int) {
	stop := make(chan struct{})
	var mu sync.Mutex
	var count int
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
			sessions, err := h.command("show sess")
			if err != nil {
				continue // it is about to end
			}
			for _, line := range sessions {
				m := sessionAge.FindStringSubmatch(line)
				if m == nil {
					continue
				}
				if is, err := time.ParseDuration(m[2]); err == nil && is >= age {
					_, _ = h.command("shutdown session " + m[1])
					mu.Lock()
					count++
					mu.Unlock()
				}
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		running.Wait()
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}

// HAProxy ends connections that are idle for 4 s. (After 5 s a client makes sure that a message has
// arrived, with a ping.)
func TestHAProxyTimeoutTunnel(t *testing.T) {
	t.Parallel()
	port, tokenFile := newServer(t)
	box := newHAProxy(t, port, "timeout tunnel 4s")
	echoing, slow := here.serve(t, echo), here.serve(t, pieces(100_000, 8*time.Second, 25*time.Second))
	client, _ := newClient(t, nil, echoing, "--server", "ws://"+box.address, "--token-file", tokenFile, "-L", "0:"+slow)
	here.staysUsable(t, client, echoing, slow, 3)
}

// A box that ends every connection after 10 s is not felt once the client has learned that: a download
// goes on, and new connections do not wait. It does not run in parallel with others, since it is about
// fractions of a second.
func TestEveryConnectionEndsAt10s(t *testing.T) {
	length := 52 * time.Second
	if long() {
		length = 2 * time.Minute
	}
	build := programs
	if agent.Race { // it is about time
		var err error
		if build, err = agent.Build(t.TempDir(), false); err != nil {
			t.Fatal(err)
		}
	}
	port, tokenFile := newServer(t)
	box := newHAProxy(t, port, "timeout tunnel 1h")
	ended := box.endAt(t, 10*time.Second)
	echoing, bulk := here.serve(t, echo), here.serve(t, pieces(64<<10, 10*time.Millisecond, length))
	client := agent.Start(t, "client", agent.Command(build.Client, "--log-level", "debug",
		"--server", "ws://"+box.address, "--token-file", tokenFile, "-L", "0:"+echoing, "-L", "0:"+bulk))
	client.Find(patience, "session opened")
	address := func(target string) string {
		return client.Find(patience, "forward listening", "forward", target).Attrs["address"]
	}

	done := make(chan struct{})
	var waits []wait
	var running sync.WaitGroup
	running.Go(func() { waits = here.knock(t, address(echoing), 50*time.Millisecond, done) })
	size, silence, whole := receive(here.connect(t, address(bulk)))
	close(done)
	running.Wait()
	if !whole || size == 0 {
		t.Errorf("the download did not arrive whole: %d bytes", size)
	}
	learned := client.Find(patience, "age limit learned")
	replaced := client.Count("carrier replaced")
	after := slices.DeleteFunc(slices.Clone(waits), func(w wait) bool { return !w.at.After(learned.At) })
	t.Logf("a download of %d bytes in %v, longest silence %v; %d connections ended by the box, %d replaced before",
		size, length, silence, ended(), replaced)
	const felt = 100 * time.Millisecond
	late := beyond(felt, after)
	t.Logf("%d new connections waited %v at most; once the limit (%s) was learned %v, and %d longer than %v",
		len(waits), longest(waits), learned.Attrs["age"], longest(after), late, felt)
	if replaced == 0 {
		t.Errorf("%d carriers were replaced", replaced)
	}
	// Each replacement that is felt makes one at least; a machine that is busy with
	// something else makes one now and then.
	if late > replaced/2 {
		t.Errorf("%d new connections waited longer than %v after the age limit was learned, in %d replacements", late, felt, replaced)
	}
	for _, line := range client.Lines() {
		if line.Msg == "session lost" && line.At.After(learned.At.Add(time.Second)) {
			t.Errorf("a carrier was lost after the limit was learned: %s", strings.TrimSpace(line.Text))
		}
	}
}
