package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

const (
	exitUsage   = 2
	exitRefused = 3
)

// runProgram runs a program as a person would, without JSON, and returns what it wrote and its exit code.
func runProgram(t *testing.T, env []string, path string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, err bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = agent.Environment(env...)
	cmd.Stdout, cmd.Stderr = &out, &err
	var exit *exec.ExitError
	if e := cmd.Run(); e != nil && !errors.As(e, &exit) {
		t.Fatal(e)
	}
	t.Logf("%s %q: exit code %d\n%s%s", filepath.Base(path), args, cmd.ProcessState.ExitCode(), &out, &err)
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// Where trying again would not help, the client says why in one line and exits with 3.
func TestRefusedAtTheFirstAttempt(t *testing.T) {
	t.Parallel()
	wrong := tokenFile(t, "not-the-token-of-the-server")
	right := tokenFile(t, token)
	plain := (&rig{t: t, programs: programs})
	plain.startServer("127.0.0.1:0")
	cert, key := selfSigned(t, "127.0.0.1")
	tls := (&rig{t: t, programs: programs})
	tls.startServer("127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	website := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(website.Close)
	login := httptest.NewServer(http.RedirectHandler("https://login.example/", http.StatusFound))
	t.Cleanup(login.Close)

	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"wrong token", []string{"--server", "ws://" + plain.address, "--token-file", wrong}, "401"},
		{"no token", []string{"--server", "ws://" + plain.address}, "401"},
		{"wrong path", []string{"--server", "ws://" + plain.address + "/elsewhere", "--token-file", right}, "404"},
		{"untrusted certificate", []string{"--server", "wss://" + tls.address, "--token-file", right}, "certificate"},
		{"wrong name", []string{"--server", "wss://" + tls.address, "--token-file", right, "--tls-ca", cert,
			"--tls-server-name", "tunnel.example"}, "tunnel.example"},
		{"a website", []string{"--server", "ws://" + hostOf(website.URL), "--token-file", right}, "404"},
		{"a login page", []string{"--server", "ws://" + hostOf(login.URL), "--token-file", right}, "redirect"},
		{"a token in plain text", []string{"--server", "ws://192.0.2.1:80", "--token-file", right}, "plain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := runProgram(t, nil, programs.Client, append(c.args, "-L", "0:127.0.0.1:9")...)
			if code != exitRefused {
				t.Errorf("exit code %d, want %d", code, exitRefused)
			}
			// The log says what it did before; why it ended is the one last line.
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			if n := strings.Count(stderr, "culvert-client: "); n != 1 {
				t.Errorf("%d lines of reasons", n)
			}
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "culvert-client: ") || !strings.Contains(last, c.says) {
				t.Errorf("%q does not mention %q", last, c.says)
			}
			if strings.Contains(stderr, token) || strings.Contains(stderr, "not-the-token") {
				t.Error("a credential was shown")
			}
		})
	}
}

func hostOf(url string) string { return strings.TrimPrefix(url, "http://") }

// What verifies is used: the same server with the right roots, and over environment variables.
func TestTLS(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t, "127.0.0.1")
	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--path", "/a/path")
	for _, flags := range [][]string{
		{"--tls-ca", cert},
		{"--tls-insecure-skip-verify"},
	} {
		r.startClient("wss://"+r.address+"/a/path", append(flags, local(target)...)...)
		conn := connect(t, r.forward(target))
		mustPing(t, conn, "through TLS")
		_ = conn.Close()
		if code := r.client.Stop(patience); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// selfSigned writes a certificate for an address or a name and its key to files.
func selfSigned(t *testing.T, host string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range []struct {
		path *string
		name string
		kind string
		der  []byte
	}{
		{&cert, "cert.pem", "CERTIFICATE", der},
		{&key, "key.pem", "PRIVATE KEY", pkcs8},
	} {
		*f.path = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.path, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// Everything that is wrong is told at once, where it stands, with exit code 2.
func TestConfigurationErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "client.yaml")
	if err := os.WriteFile(file, []byte(strings.Join([]string{
		"server: ws://127.0.0.1:1",         // 1
		"heartbeet: 20s",                   // 2 unknown
		"grace: soon",                      // 3 wrong value
		"retry-initial: 3",                 // 4 wrong type
		"local:",                           // 5
		"  - 70000:db.internal:5432",       // 6 port out of range
		"  - 5432:db.internal:5432",        // 7
		"  - 127.0.0.1:5432:other.host:22", // 8 the same address again
	}, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := runProgram(t, nil, programs.Client, "--config", file, "--max-backoff", "-1s")
	if code != exitUsage {
		t.Errorf("exit code %d, want %d", code, exitUsage)
	}
	for _, want := range []string{
		file + ":2: heartbeet", "did you mean heartbeat", file + ":3: grace", file + ":4: retry-initial",
		file + ":6: local", "70000", file + ":8: local", file + ":7", "--max-backoff",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("nothing says %q", want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, program string
		args          []string
		says          string
	}{
		{"no credential, no service", programs.Server, []string{"--listen", "127.0.0.1:0"}, "--insecure-no-auth"},
		{"an empty token file", programs.Server, []string{"--listen", "127.0.0.1:0", "--token-file", tokenFile(t, "")}, "token"},
		{"no server", programs.Client, []string{"-L", "1:a:1"}, "--server"},
		{"an unknown flag", programs.Client, []string{"--sever", "ws://x"}, "sever"},
		{"a malformed forward", programs.Client, []string{"--server", "ws://127.0.0.1:1", "-L", "5432:db"}, "5432:db"},
		{"a password in the URL without a user", programs.Client, []string{"--server", "ws://:secret@127.0.0.1:1"}, "--token-file"},
		{"a user of a front and several servers", programs.Client, []string{"--server", "ws://me:secret@127.0.0.1:1", "--server", "ws://127.0.0.1:2"}, "--front-user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := runProgram(t, nil, c.program, c.args...)
			if code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			if !strings.Contains(stderr, c.says) {
				t.Errorf("nothing says %q", c.says)
			}
			if strings.Contains(stderr, "secret") {
				t.Error("a credential was shown")
			}
		})
	}
}

// Every documented way to give a credential works at both ends, and the server has no other way in.
func TestWaysToGiveACredential(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte("token: "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		env  []string
	}{
		{"--token-file", []string{"--token-file", tokenFile(t, token)}, nil},
		{"--token", []string{"--token", token}, nil},
		{"CULVERT_TOKEN", nil, []string{"CULVERT_TOKEN=" + token}},
		{"CULVERT_TOKEN_FILE", nil, []string{"CULVERT_TOKEN_FILE=" + tokenFile(t, token)}},
		{"token in --config", []string{"--config", file}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cmd := agent.Command(programs.Server, append([]string{"--listen", "127.0.0.1:0"}, c.args...)...)
			cmd.Env = append(cmd.Env, c.env...)
			server := agent.Start(t, "server", cmd)
			url := "ws://" + server.Find(patience, "server listening").Attrs["address"]
			cmd = agent.Command(programs.Client, append(append([]string{"--server", url}, c.args...), local(target)...)...)
			cmd.Env = append(cmd.Env, c.env...)
			client := agent.Start(t, "client", cmd)
			entrance := client.Find(patience, "forward listening").Attrs["address"]
			mustPing(t, connect(t, entrance), "let in")
			if _, _, code := runProgram(t, nil, programs.Client, "--server", url, "-L", "0:127.0.0.1:9"); code != exitRefused {
				t.Errorf("without a credential: exit code %d", code)
			}
			for _, p := range []*agent.Process{client, server} {
				for _, line := range p.Lines() {
					if strings.Contains(line.Text, token) {
						t.Errorf("a credential in the log: %s", line)
					}
				}
			}
		})
	}
}

// With --retry-initial a client may be started long before its server, whatever answers until then.
func TestRetryInitial(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		says string
		take func(t *testing.T, address string) (leave func()) // the server's place
	}{
		{"nobody there", "connection refused", func(*testing.T, string) func() { return func() {} }},
		{"somebody else there", "404", func(t *testing.T, address string) func() {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			website := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: patience}
			served := make(chan error, 1)
			go func() { served <- website.Serve(listener) }()
			return func() {
				_ = website.Close()
				<-served
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			address := "127.0.0.1:" + thirdparty.FreePort(t)
			leave := c.take(t, address)
			client := startClient(t, programs, append(local(target), "--server", "ws://"+address,
				"--token-file", tokenFile(t, token), "--retry-initial", "--max-backoff", "300ms")...)
			client.ExpectText(patience, c.says)
			client.ExpectText(patience, c.says)
			leave()
			r := &rig{t: t, programs: programs, client: client}
			r.startServer(address)
			client.Expect(patience, "session opened")
			mustPing(t, connect(t, r.forward(target)), "at last")
		})
	}
}

// Without it, a server that is not there is a failure that trying again may cure: exit code 1.
func TestServerNotThere(t *testing.T) {
	t.Parallel()
	_, stderr, code := runProgram(t, nil, programs.Client, "--server", "ws://127.0.0.1:"+thirdparty.FreePort(t), "-L", "0:127.0.0.1:9")
	if code != 1 || !strings.Contains(stderr, "connection refused") {
		t.Errorf("exit code %d", code)
	}
}
