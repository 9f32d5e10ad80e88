package middlebox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"culvert/test/agent"
	"culvert/test/docs"
	"culvert/test/thirdparty"
)

// The README's server, nginx and client work together as they stand there, and the log and the audit log
// name the client's address, also when the client claims another one.
func TestReadmeBehindNginx(t *testing.T) {
	t.Parallel()
	nginx := thirdparty.Program(t, "nginx")
	thirdparty.Program(t, "openssl")
	near, far := newNamespaces(t)
	target := far.place().serve(t, echo)
	blocks, dir := docs.Blocks(t, "../../README.md"), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	far.run("", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-keyout", key, "-out", cert, "-subj", "/CN=tunnel.example.com", "-addext", "subjectAltName=DNS:tunnel.example.com")

	// shell runs a block whose last line is a program of ours, with more flags.
	shell := func(n *namespace, name string, flags ...string) *agent.Process {
		t.Helper()
		text := strings.TrimSpace(strings.ReplaceAll(blocks["run: proxied "+name], "db.internal:5432", target))
		i := strings.LastIndex(text, "\n") + 1
		cmd := exec.Command("bash", "-euc", "cd "+dir+"\n"+text[:i]+"exec "+text[i:]+" --log-format json "+strings.Join(flags, " "))
		cmd.Env = agent.Environment("PATH=" + filepath.Dir(programs.Client) + ":/usr/bin:/bin")
		return agent.Start(t, name, n.command(cmd))
	}
	server := shell(far, "server", "--audit", "audit.log")
	server.Find(patience, "server listening")
	file := thirdparty.Config(t, dir, "nginx.conf", `
daemon off; master_process off; worker_processes 1; pid DIR/pid; error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off; error_log stderr error;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
	`+strings.NewReplacer(
		"/etc/letsencrypt/live/tunnel.example.com/fullchain.pem", cert,
		"/etc/letsencrypt/live/tunnel.example.com/privkey.pem", key).Replace(blocks["file: nginx.conf"])+`
}`)
	agent.Start(t, "nginx", far.command(exec.Command(nginx, "-c", file, "-p", dir, "-e", "stderr"))).ExpectText(patience, "event method")

	for _, flags := range [][]string{
		nil,
		{"--carrier", "http"},
		{"--header", "'X-Forwarded-For: 192.0.2.1'"},
	} {
		server.Forget()
		client := shell(near, "client", append(flags, "--dial-address", farAddress+":443", "--tls-ca", cert)...)
		conn := near.place().connect(t, client.Find(patience, "forward listening").Attrs["address"])
		ask(t, conn, "through nginx")
		_ = conn.Close() // nothing is left to wait for when the client stops
		opened := server.Expect(patience, "session opened")
		if remote := opened.Attrs["remote"]; !strings.HasPrefix(remote, nearAddress+":") {
			t.Errorf("%q: the log names %s, not %s", flags, remote, nearAddress)
		}
		if code := client.Stop(patience); code != 0 {
			t.Errorf("%q: exit code %d", flags, code)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "culvert.token"), []byte("not-the-token-that-the-server-knows\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := shell(near, "client", "--dial-address", farAddress+":443", "--tls-ca", cert)
	if code := refused.Exit(patience); code != 3 {
		t.Errorf("a wrong token: exit code %d", code)
	}
	server.Stop(patience)
	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(audit)) {
		if strings.Contains(line, `"remote":`) && !strings.Contains(line, `"remote":"`+nearAddress+`:`) {
			t.Errorf("the audit log does not name %s: %s", nearAddress, line)
		}
	}
	if !strings.Contains(string(audit), `"login_refused"`) {
		t.Errorf("the refused login is not in the audit log:\n%s", audit)
	}
}
