package test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// OpenSSH: a login that lasts, and a copy of 200 MB, while the carrier is cut every two seconds.
func TestOpenSSH(t *testing.T) {
	for _, carrier := range []string{"websocket", "http"} {
		t.Run(carrier, func(t *testing.T) { testOpenSSH(t, carrier) })
	}
}

func testOpenSSH(t *testing.T, carrier string) {
	size, rate := int64(20<<20), int64(5<<20)
	if full() {
		size, rate = 200_000_000, 25<<20 // some 8 s
	}
	s := newSSHD(t)
	r := newRig(t, config{programs: &measured, client: append(local(s.address), "--carrier", carrier)})
	s.through(portOf(r.forward(s.address)))
	r.relay.Limit(rate)
	defer r.relay.CutEvery(2 * time.Second)()

	login := s.command("ssh", "-p", s.port, s.user+"@127.0.0.1",
		"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do read line; echo $i $line; sleep 0.25; done")
	login.Stdin = strings.NewReader(strings.Repeat("and a line from here\n", 12))
	out, err := login.CombinedOutput()
	if err != nil {
		t.Fatalf("login: %v\n%s", err, out)
	}
	if got := strings.Count(string(out), "and a line from here"); got != 12 {
		t.Errorf("login: %d lines of 12 came back:\n%s", got, out)
	}

	file, copied := filepath.Join(s.dir, "file"), filepath.Join(s.dir, "copied")
	writeFile(t, file, size)
	started := time.Now()
	scp := s.command("scp", "-P", s.port, file, s.user+"@127.0.0.1:"+copied)
	if out, err := scp.CombinedOutput(); err != nil {
		t.Fatalf("scp: %v\n%s", err, out)
	}
	if digest(t, file) != digest(t, copied) {
		t.Error("the copy differs")
	}
	t.Logf("scp of %d MB in %v; %d carriers cut, %d resumes", size/1e6,
		time.Since(started).Round(time.Millisecond), r.relay.Cuts(), r.client.Count("session resumed"))
	if r.relay.Cuts() < 2 || carrier == "websocket" && r.client.Count("session resumed") < 2 { // not every cut loses a byte of HTTP
		t.Error("the carrier was hardly cut")
	}
}

// A login through an nginx that strips the Upgrade answers each line at once, without a word to culvert about
// it.
func TestOpenSSHWithoutUpgrade(t *testing.T) {
	t.Parallel()
	s := newSSHD(t)
	r := &rig{t: t, programs: measured}
	r.startServer("127.0.0.1:0")
	started := time.Now()
	r.startClient("ws://"+thirdparty.Nginx(t, r.address, ""), local(s.address)...)
	if up := time.Since(started); up > 5*time.Second {
		t.Errorf("up after %v", up)
	}
	r.client.Find(patience, "session opened", "carrier", "http")
	s.through(portOf(r.forward(s.address)))

	login := s.command("ssh", "-tt", "-p", s.port, s.user+"@127.0.0.1", "stty -echo; echo ready; cat")
	in, err := login.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := login.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := login.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.TrimSpace(lines.Text()) != want {
			t.Fatalf("%q instead of %q, %v", lines.Text(), want, lines.Err())
		}
	}
	expect("ready")
	var took []time.Duration
	for i := range 100 {
		line := fmt.Sprint("line ", i)
		asked := time.Now()
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		expect(line)
		took = append(took, time.Since(asked))
	}
	_ = in.Close()
	_ = login.Process.Kill()
	_ = login.Wait()
	slices.Sort(took)
	t.Logf("a line comes back after %v, the slowest of 100 after %v", took[50], took[99])
	if took[50] > 200*time.Millisecond {
		t.Errorf("a line comes back after %v", took[50])
	}
}

// sshd is an OpenSSH server of the test's own, with keys of its own.
type sshd struct {
	t         *testing.T
	dir, user string
	address   string // of the server
	port      string // that ssh and scp are to use
}

func newSSHD(t *testing.T) *sshd {
	t.Helper()
	path := thirdparty.Program(t, "sshd")
	keygen := thirdparty.Program(t, "ssh-keygen")
	thirdparty.Program(t, "ssh")
	thirdparty.Program(t, "scp")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &sshd{t: t, dir: t.TempDir(), user: me.Username, port: thirdparty.FreePort(t)}
	s.address = "127.0.0.1:" + s.port
	if os.Getuid() == 0 {
		// Where sshd, started by root, confines what is not yet logged in.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"host", "login"} {
		if out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	config := filepath.Join(s.dir, "sshd_config")
	text := strings.ReplaceAll(strings.Join([]string{
		"ListenAddress " + s.address,
		"HostKey DIR/host",
		"AuthorizedKeysFile DIR/login.pub",
		"StrictModes no", // the keys lie below a folder that others may write to
		"PermitRootLogin prohibit-password",
		"PasswordAuthentication no",
		"UsePAM no",
		"PidFile none",
		"Subsystem sftp internal-sftp",
	}, "\n")+"\n", "DIR", s.dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	agent.Start(t, "sshd", exec.Command(path, "-D", "-e", "-f", config)).ExpectText(patience, "Server listening")
	return s
}

func (s *sshd) through(port string) { s.port = port }

// command is one of OpenSSH's programs, which asks nothing and uses the test's keys only.
func (s *sshd) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	return exec.CommandContext(ctx, name, append([]string{
		"-F", "none", "-i", filepath.Join(s.dir, "login"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
	}, args...)...)
}

func writeFile(t *testing.T, path string, size int64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(file, content(7), size); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
