package test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/docs"
	"culvert/test/thirdparty"
)

// Each block of commands in the README is run as it stands, but for the names of machines and ports that
// only exist elsewhere.
func readmeBlocks(t *testing.T) map[string]string {
	t.Helper()
	return docs.Blocks(t, "../README.md")
}

func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	thirdparty.Program(t, "openssl")
	blocks := readmeBlocks(t)
	used := map[string]bool{ // by others
		"run: demo": true, "run: tests": true, "run: front server": true,
		"run: proxied server": true, "file: nginx.conf": true, "run: proxied client": true,
	}
	take := func(name string) string {
		t.Helper()
		text, ok := blocks[name]
		if !ok {
			t.Fatalf("the README has no block %q", name)
		}
		used[name] = true
		return text
	}
	for _, c := range []struct{ name, server, client string }{
		{"a public certificate", "run: server", ""},
		{"a certificate of one's own", "run: own certificate server", "run: own certificate client"},
		{"sealed", "run: sealed server", "run: sealed client"},
	} {
		s := newSheet(t, serve(t, echo))
		server := take(c.server)
		clients := []string{take("run: database client"), take("run: website client"), take("run: ssh client"),
			take("run: proxy client"), take("run: file client")}
		if c.client != "" {
			clients = []string{take(c.client)}
		}
		doctor := take("run: doctor")
		s.write("client.yaml", take("file: client.yaml"))
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s.start(t, "server", server).ExpectText(patience, "server listening")
			if c.client == "" {
				p := s.start(t, "doctor", doctor)
				p.ExpectText(patience, "A tunnel works.")
				if code := p.Exit(patience); code != 0 {
					t.Errorf("the doctor's exit code %d", code)
				}
			}
			for _, client := range clients {
				p := s.start(t, "client", client)
				p.ExpectText(patience, "forward listening")
				reached := 0
				for _, port := range s.ports {
					conn, err := net.Dial("tcp", "127.0.0.1:"+port)
					if err != nil {
						continue
					}
					extend(t, conn, patience)
					if _, err := ping(conn, "as the README says"); err == nil {
						reached++
					}
					_ = conn.Close()
				}
				if reached == 0 {
					t.Errorf("nothing can be reached through\n%s", client)
				}
				if code := p.Stop(patience); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
	for name := range blocks {
		if !used[name] {
			t.Errorf("nothing uses the README's block %q", name)
		}
	}
}

// sheet is a folder in which blocks of the README are run by a shell.
type sheet struct {
	t     *testing.T
	dir   string
	ports map[string]string // that stand in for those of the README's forwards
	names *strings.Replacer
}

func newSheet(t *testing.T, target string) *sheet {
	t.Helper()
	s := &sheet{t: t, dir: t.TempDir(), ports: make(map[string]string)}
	cert, key := selfSigned(t, "tunnel.example.com")
	listen := "127.0.0.1:" + thirdparty.FreePort(t)
	pairs := []string{
		"/etc/letsencrypt/live/tunnel.example.com/fullchain.pem", cert,
		"/etc/letsencrypt/live/tunnel.example.com/privkey.pem", key,
		"--listen :443", "--listen " + listen,
		"--server wss://tunnel.example.com --tls-ca cert.pem",
		"--server wss://" + listen + " --tls-server-name tunnel.example.com --tls-ca cert.pem",
		"--server wss://tunnel.example.com",
		"--server wss://" + listen + " --tls-server-name tunnel.example.com --tls-ca " + cert,
		"http://proxy.internal:3128", "http://" + newProxy(t),
		"server: wss://tunnel.example.com",
		"server: wss://" + listen + "\ntls-server-name: tunnel.example.com\ntls-ca: " + cert,
	}
	for _, forward := range []struct{ port, target string }{
		{"5432", "db.internal:5432"}, {"8000", "127.0.0.1:3000"}, {"2222", "127.0.0.1:22"},
	} {
		s.ports[forward.port] = thirdparty.FreePort(t)
		pairs = append(pairs, " "+forward.port+":"+forward.target, " "+s.ports[forward.port]+":"+target)
	}
	s.names = strings.NewReplacer(pairs...)
	return s
}

// newProxy starts a forward proxy that knows CONNECT only, and returns its address.
func newProxy(t *testing.T) string {
	t.Helper()
	var wg sync.WaitGroup
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		far, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		near, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		wg.Add(2)
		_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
		for _, c := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
			go func() {
				defer wg.Done()
				_, _ = io.Copy(c.to, c.from)
				_ = c.to.Close()
			}()
		}
	}))
	t.Cleanup(func() {
		srv.Close()
		wg.Wait() // for both agents to end, which they do before
	})
	return srv.Listener.Addr().String()
}

func (s *sheet) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(s.names.Replace(text)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// start runs a block of the README whose last line is a program of ours.
func (s *sheet) start(t *testing.T, name, text string) *agent.Process {
	t.Helper()
	text = s.names.Replace(strings.ReplaceAll(strings.TrimSpace(text), "\\\n", ""))
	lines := strings.Split(text, "\n")
	lines[len(lines)-1] = "exec " + lines[len(lines)-1] // so that signals reach it
	cmd := exec.Command("bash", "-euc", strings.Join(lines, "\n"))
	cmd.Dir = s.dir
	cmd.Env = agent.Environment("PATH=" + filepath.Dir(programs.Client) + ":" + os.Getenv("PATH"))
	return agent.Start(t, name, cmd)
}

// The demo proves, in one command, that a download outlives its WebSocket.
func TestDemo(t *testing.T) {
	t.Parallel()
	const built = "go run ./cmd/culvert-client"
	text := strings.TrimSpace(readmeBlocks(t)["run: demo"])
	if !strings.HasPrefix(text, built) {
		t.Fatalf("the README's command is %q", text)
	}
	started := time.Now()
	// What `go run` would build is there already, and ends with its signal.
	cmd := exec.Command(programs.Client, append(strings.Fields(strings.TrimPrefix(text, built)), "--once")...)
	cmd.Env = agent.Environment()
	demo := agent.Start(t, "demo", cmd)
	if code := demo.Exit(time.Minute); code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Logf("the demo took %v", time.Since(started).Round(time.Millisecond))
}
