package test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
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

// OpenSSL's own client finds what it should at a server's port: nothing below TLS 1.2, HTTP/1.1 only, and
// tickets that it can come back with.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := thirdparty.Program(t, "openssl")
	own := issue(t, "Our CA")
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--tls-cert", own.cert, "--tls-key", own.key)
	// A request, so that the answer, and the ticket before it, are read; OpenSSL wants security level 0 for
	// what is older than TLS 1.2.
	ask := func(flags ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), openssl, append([]string{
			"s_client", "-connect", r.address, "-servername", "tunnel.example", "-CAfile", own.authority, "-verify_return_error",
			"-cipher", "DEFAULT@SECLEVEL=0", "-ign_eof",
		}, flags...)...)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: tunnel.example\r\nConnection: close\r\n\r\n")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, tt := range []struct {
		flag     string
		accepted string // what OpenSSL calls the version then, "" if it is not
	}{{"-tls1", ""}, {"-tls1_1", ""}, {"-tls1_2", "TLSv1.2"}, {"-tls1_3", "TLSv1.3"}} {
		out, err := ask(tt.flag, "-alpn", "h2,http/1.1")
		if tt.accepted == "" {
			if err == nil || !strings.Contains(out, "alert protocol version") {
				t.Errorf("%s: %v\n%s", tt.flag, err, out)
			}
			continue
		}
		for _, want := range []string{"New, " + tt.accepted, "Verify return code: 0 (ok)", "ALPN protocol: http/1.1", "HTTP/1.1 404 Not Found"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: not %q, %v, in\n%s", tt.flag, want, err, out)
			}
		}
		session := filepath.Join(t.TempDir(), "session")
		if out, err := ask(tt.flag, "-sess_out", session); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out, err := ask(tt.flag, "-sess_in", session); err != nil || !strings.Contains(out, "Reused, "+tt.accepted) || !strings.Contains(out, "HTTP/1.1 404") {
			t.Errorf("%s: not resumed, %v\n%s", tt.flag, err, out)
		}
	}
	if out, _ := ask("-alpn", "h2"); !strings.Contains(out, "no application protocol") {
		t.Errorf("h2: %s", out)
	}
}

// A certificate that is replaced is served to the next client, and those that are there stay.
func TestCertificateReplaced(t *testing.T) {
	t.Parallel()
	before, after := issue(t, "Before"), issue(t, "After")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put := func(from, to string) {
		t.Helper()
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(before.cert, cert)
	put(before.key, key)
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(after.authority); err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	r.startClient("wss://"+r.address, "--tls-ca", before.authority, "-L", "0:"+target)
	conn := connect(t, r.forward(target))
	extend(t, conn, patience)
	mustPing(t, conn, "hello")

	put(after.cert, cert)
	put(after.key, key)
	replaced := false
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); !replaced && time.Now().Before(deadline); <-again.C {
		if probe, err := tls.Dial("tcp", r.address, &tls.Config{RootCAs: roots}); err == nil {
			probe.Close()
			replaced = true
		}
	}
	if !replaced {
		t.Error("the old certificate is still served")
	}
	mustPing(t, conn, "still there")
	if n := r.client.Count("session resumed"); n > 0 {
		t.Errorf("the session was resumed %d times", n)
	}
}

// With a web server behind it and --stealth, a server is that web server to everybody but its clients.
func TestStealthWithFallback(t *testing.T) {
	t.Parallel()
	nginx := thirdparty.Program(t, "nginx")
	dir, address := t.TempDir(), "127.0.0.1:"+thirdparty.FreePort(t)
	if err := os.MkdirAll(filepath.Join(dir, "html", "docs"), 0o755); err != nil {
		t.Fatal(err)
	}
	large := bytes.Repeat([]byte("culverts are dull\n"), 1<<20)
	for name, content := range map[string][]byte{"index.html": []byte("<p>a site\n"), "large": large} {
		if err := os.WriteFile(filepath.Join(dir, "html", name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := thirdparty.Config(t, dir, "nginx.conf", `
daemon off; master_process off; worker_processes 1; pid DIR/pid; error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off; error_log stderr crit;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
	server { listen SITE; root DIR/html; }
}
`, "SITE", address)
	agent.Start(t, "nginx", exec.Command(nginx, "-c", file, "-p", dir, "-e", "stderr")).ExpectText(patience, "event method")

	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--fallback", "http://"+address, "--stealth", "--path", "/tunnel")
	r.startClient("ws://"+r.address+"/tunnel", "-L", "0:"+target)
	conn := connect(t, r.forward(target))
	extend(t, conn, patience)
	mustPing(t, conn, "hello")

	resp, err := http.Get("http://" + r.address + "/large")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, large) || !strings.HasPrefix(resp.Header.Get("Server"), "nginx/") {
		t.Errorf("a page: %v, %d bytes, %v", err, len(body), resp.Header)
	}
	// nginx redirects to a folder, and says for that where it is itself.
	direct, err := http.DefaultTransport.RoundTrip(httptest.NewRequest(http.MethodGet, "http://"+r.address+"/docs?a=b", nil))
	if err != nil {
		t.Fatal(err)
	}
	direct.Body.Close()
	if location := direct.Header.Get("Location"); direct.StatusCode != http.StatusMovedPermanently || location != "/docs/?a=b" {
		t.Errorf("a folder: %s, to %q", direct.Status, location)
	}
	const upgrade = " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: culvert.v1\r\n" +
		"Authorization: Bearer guessed-it\r\nCulvert-Hello: aGk\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	answers := make(map[string]string)
	for _, path := range []string{"/tunnel", "/nothin"} {
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		extend(t, conn, patience)
		write(t, conn, "GET "+path+upgrade)
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		for line := range strings.Lines(string(answer)) {
			if !strings.HasPrefix(line, "Date: ") {
				answers[path] += line
			}
		}
	}
	if answer := answers["/tunnel"]; answer != answers["/nothin"] || !strings.HasPrefix(answer, "HTTP/1.1 404") || !strings.Contains(answer, "nginx") ||
		!strings.Contains(answer, "<p>a site") {
		t.Errorf("a wrong credential is answered\n%s\nand another path\n%s", answer, answers["/nothin"])
	}

	_, stderr, code := runProgram(t, nil, programs.Client, "--server", "ws://"+r.address+"/tunnel",
		"--token-file", tokenFile(t, "unknown-to-the-server"), "-L", "0:127.0.0.1:9")
	if code != 3 || !strings.Contains(stderr, "or the credential is not accepted (a stealthy server says no more)") ||
		!strings.Contains(stderr, "check the address, the path and the credential") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// A WebSocket of the site passes the server, with the Origin that the browser says.
func TestFallbackWebSocket(t *testing.T) {
	t.Parallel()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Origin: %s\r\nContent-Location: http://%s/\r\n\r\n",
			r.Header.Get("Origin"), r.Host)
		_, _ = io.Copy(conn, rw)
	}))
	t.Cleanup(site.Close)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--fallback", site.URL)
	conn := connect(t, r.address)
	extend(t, conn, patience)
	write(t, conn, "GET / HTTP/1.1\r\nHost: tunnel.example\r\nOrigin: http://tunnel.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("X-Origin") != "http://tunnel.example" || resp.Header.Get("Content-Location") != "/" {
		t.Errorf("%s, %v", resp.Status, resp.Header)
	}
	write(t, conn, "hello\n")
	if line, err := reader.ReadString('\n'); line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}
