package idle

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/test/agent"
)

const (
	streams  = 10_000
	limit    = 12 << 10 // bytes of resident memory for each stream in each agent
	patience = time.Minute
	workers  = 32 // that open connections at the same time
)

func TestIdleStreams(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max < streams+1000 {
		t.Fatalf("%d connections need a hard limit of as many file descriptors and some; it is %d (ulimit -Hn)", streams, files.Max)
	}
	dir := t.TempDir()
	programs, err := agent.Build(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	helper := exec.Command(self)
	helper.Env = append(os.Environ(), targetVariable+"=1")
	target := agent.Start(t, "target", helper).Find(patience, "target").Attrs["address"]

	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("a-token-of-the-idle-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := agent.Start(t, "server", exec.Command(programs.Server, "--log-format", "json",
		"--listen", "127.0.0.1:0", "--token-file", token))
	client := agent.Start(t, "client", exec.Command(programs.Client, "--log-format", "json",
		"--server", "ws://"+server.Find(patience, "server listening").Attrs["address"], "--token-file", token, "-L", "0:"+target))
	entrance := client.Find(patience, "forward listening").Attrs["address"]

	agents := map[string]*agent.Process{"client": client, "server": server}
	open(t, entrance, 100) // what is set up once is not a stream's
	before := map[string]int64{"client": client.RSS(), "server": server.RSS()}

	started := time.Now()
	conns := open(t, entrance, streams)
	t.Logf("%d streams opened in %v", streams, time.Since(started).Round(time.Millisecond))

	// What opening left behind is returned to the system little by little.
	cost := func() (each map[string]int64, within bool) {
		each, within = make(map[string]int64), true
		for name, p := range agents {
			each[name] = (p.RSS() - before[name]) / streams
			within = within && each[name] <= limit
		}
		return each, within
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	each, within := cost()
	for deadline := time.Now().Add(20 * time.Second); !within && time.Now().Before(deadline); each, within = cost() {
		<-ticker.C
	}
	for name, bytes := range each {
		t.Logf("%s: %.1f KiB for each of %d idle streams", name, float64(bytes)/1024, streams)
	}
	if !within {
		t.Errorf("more than %d KiB", limit>>10)
	}
	for _, conn := range conns[:100] {
		if err := echo(conn); err != nil {
			t.Errorf("after the idle time: %v", err)
		}
	}
}

// open makes n connections that have echoed once and are idle from then on.
func open(t *testing.T, address string, n int) []net.Conn {
	t.Helper()
	conns, errs := make([]net.Conn, n), make([]error, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				conn, err := net.DialTimeout("tcp", address, patience)
				if err == nil {
					conns[i], err = conn, echo(conn)
				}
				errs[i] = err
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
	})
	if failed := slices.IndexFunc(errs, func(err error) bool { return err != nil }); failed >= 0 {
		t.Fatalf("connection %d of %d: %v", failed, n, errs[failed])
	}
	return conns
}

func echo(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}
