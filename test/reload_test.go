package test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// replace gives a file another content at once, as an editor does.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

// identity is a line of a server's configuration.
func identity(name string, rules ...string) string {
	return fmt.Sprintf("  %s: {tokens: [{hash: \"sha256:%x\"}], dial: [%s]}\n",
		name, sha256.Sum256([]byte(tokenOf(name))), `"`+strings.Join(rules, `", "`)+`"`)
}

func tokenOf(name string) string { return "the-token-of-" + name }

// 100 reloads while 50 streams transfer: none of them notices, those of who is removed or denied are gone
// within a second, who is added is let in, and a file that is wrong changes nothing.
func TestReloadUnderLoad(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGHUP")
	}
	const transfers, reloads = 50, 100
	target, other := serve(t, echo), serve(t, echo)
	file := filepath.Join(t.TempDir(), "server.yaml")
	const head = "listen: 127.0.0.1:0\nidentities:\n"
	everywhere := "allow 127.0.0.1:*"
	alice, bob := identity("alice", everywhere), identity("bob", everywhere)
	replace(t, file, head+alice+bob)
	server := startServer(t, programs, "--config", file)
	url := "ws://" + server.Find(patience, "server listening").Attrs["address"]
	client := func(name string) *rig {
		t.Helper()
		r := &rig{t: t, programs: programs}
		r.client = startClient(t, programs, append(append(local(target), local(other)...),
			"--server", url, "--token-file", tokenFile(t, tokenOf(name)))...)
		return r
	}
	aliceAt, bobAt := client("alice"), client("bob")

	stop := make(chan struct{})
	var moved [transfers]int
	var wg sync.WaitGroup
	block := strings.Repeat("culvert!", 4<<10)
	for i := range transfers {
		conn := connect(t, aliceAt.forward(target))
		mustPing(t, conn, "before")
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				extend(t, conn, patience)
				if _, err := ping(conn, block); err != nil {
					t.Errorf("transfer %d: %v", i, err)
					return
				}
				moved[i] += len(block)
			}
		})
	}
	denied := connect(t, aliceAt.forward(other))
	removed := connect(t, bobAt.forward(target))
	mustPing(t, denied, "before")
	mustPing(t, removed, "before")

	// reload has the server read the file, and returns when it has begun to.
	reload := func(content string) time.Time {
		t.Helper()
		replace(t, file, content)
		server.Forget()
		began := time.Now()
		server.Signal(syscall.SIGHUP)
		return began
	}
	// gone waits for the end of a connection, which must come soon.
	gone := func(who string, conn net.Conn, began time.Time) {
		t.Helper()
		extend(t, conn, patience)
		wantReset(t, conn)
		limit := time.Second
		if agent.Race {
			limit = patience
		}
		if took := time.Since(began); took > limit {
			t.Errorf("%s goes on for %v", who, took)
		} else {
			t.Logf("%s is gone after %v", who, took.Round(time.Millisecond))
		}
	}
	body := head + alice + bob
	for n := range reloads + 1 { // one of which fails
		switch n {
		case reloads / 4:
			body = head + identity("alice", "deny "+other, everywhere) + bob
			gone("what is denied", denied, reload(body))
		case reloads / 2:
			body = head + identity("alice", "deny "+other, everywhere) + identity("carol", everywhere)
			gone("who is removed", removed, reload(body))
		case reloads * 3 / 4:
			reload(body + "  dave:\n    dail: []\n    dial: [\"permit *:*\"]\n")
			for _, want := range []string{file + ":6: identities.dave.dail: there is no such key; did you mean dial?", file + ":7: identities.dave.dial: "} {
				server.Find(patience, "configuration not reloaded", "error", want)
			}
			mustPing(t, connect(t, aliceAt.forward(target)), "still")
			continue
		default:
			// Always another file, with others in it and another order of rules.
			reload(body + identity(fmt.Sprint("guest-", n), fmt.Sprintf("deny 192.0.2.%d:*", n), everywhere))
		}
		server.Expect(patience, "configuration reloaded")
	}
	close(stop)
	wg.Wait()
	total := 0
	for i, n := range moved {
		if n == 0 {
			t.Errorf("transfer %d did not move", i)
		}
		total += n
	}
	t.Logf("%d reloads while %d streams echoed %d MiB", server.Count("configuration reloaded"), transfers, total>>20)
	if n := aliceAt.client.Count("session opened"); n != 1 {
		t.Errorf("%d sessions of who stayed", n)
	}

	carolAt := client("carol")
	mustPing(t, connect(t, carolAt.forward(target)), "welcome")
	if _, stderr, code := runProgram(t, nil, programs.Client, "--server", url, "--token", tokenOf("bob"), "-L", "0:127.0.0.1:9"); code != exitRefused {
		t.Errorf("who was removed: exit code %d, %s", code, stderr)
	}

	// Without a signal it takes a look or two.
	replace(t, file, "path: /elsewhere\nlisten: 127.0.0.1:1\n"+strings.TrimPrefix(body, "listen: 127.0.0.1:0\n"))
	server.Forget()
	server.Expect(patience, "needs a restart to change: listen, path")
	server.Expect(patience, "configuration reloaded")
}

// The client's forwards come and go with its file while another one's connection goes on.
func TestReloadedForwards(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGHUP")
	}
	t.Parallel()
	target := serve(t, echo)
	port := func() string { return thirdparty.FreePort(t) }
	stays, goes, comes, back := port(), port(), port(), port()
	file := filepath.Join(t.TempDir(), "client.yaml")
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0")
	head := "server: ws://" + r.address + "\ntoken-file: " + tokenFile(t, token) + "\n"
	forwards := func(ports ...string) (list string) {
		for _, port := range ports {
			list += "  - " + port + ":" + target + "\n"
		}
		return list
	}
	replace(t, file, head+"local:\n"+forwards(stays, goes))
	r.client = startClient(t, programs, "--config", file, "--grace", "0s")
	r.client.Find(patience, "session opened")
	conn, left := connect(t, "127.0.0.1:"+stays), connect(t, "127.0.0.1:"+goes)
	mustPing(t, conn, "before")
	mustPing(t, left, "before")

	replace(t, file, head+"local:\n"+forwards(stays, comes)+"remote:\n"+forwards(back))
	r.client.Signal(syscall.SIGHUP)
	r.client.Expect(patience, "configuration reloaded")
	r.client.Find(patience, "forward listening", "forward", "remote localhost:"+back)
	mustPing(t, connect(t, "127.0.0.1:"+comes), "come")
	mustPing(t, connect(t, "127.0.0.1:"+back), "come back")
	mustPing(t, left, "left to itself")
	if c, err := net.Dial("tcp", "127.0.0.1:"+goes); err == nil {
		_ = c.Close()
		t.Error("a forward that is gone listens")
	}

	// A mistake is told with its line, and changes nothing.
	replace(t, file, head+"local:\n"+forwards(comes)+"  - 70000:"+target+"\n")
	r.client.Expect(patience, "configuration not reloaded", "error", file+":5: local: port 70000 is out of range")
	mustPing(t, connect(t, "127.0.0.1:"+stays), "still there")

	replace(t, file, head+"local:\n"+forwards(comes))
	r.client.Expect(patience, "configuration reloaded")
	for _, port := range []string{stays, back} {
		address := "127.0.0.1:" + port
		deadline := time.Now().Add(patience)
		for {
			c, err := net.Dial("tcp", address)
			if errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
			if err == nil {
				_, _ = io.Copy(io.Discard, c) // the server's listener is closed when it hears of it
				_ = c.Close()
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s still listens", address)
			}
		}
	}
	mustPing(t, conn, "after all")
	if n := r.client.Count("session opened"); n != 1 {
		t.Errorf("%d sessions", n)
	}
	if code := r.client.Stop(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
