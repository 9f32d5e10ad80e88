package test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

const pebbleModule = "github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1"

// pebble is Let's Encrypt's small ACME server, of the test's own, in whose DNS every name is 127.0.0.1.
type pebble struct {
	*agent.Process
	directory, authority string // URL; file of the authority of that URL's certificate
	roots                string // file of the authority of the certificates that it issues
}

// buildPebble returns the path of the program, which is not among the modules of this one.
func buildPebble(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	started := time.Now()
	build := exec.Command("go", "install", pebbleModule)
	build.Dir, build.Env = dir, agent.Environment("GOBIN="+dir, "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s: %v\n%s", pebbleModule, err, out)
		}
		t.Skipf("%s cannot be built here: %v", pebbleModule, err)
	}
	t.Logf("built %s in %v", pebbleModule, time.Since(started).Round(time.Millisecond))
	return filepath.Join(dir, "pebble")
}

// newPebble starts one that makes its challenges at these ports instead of 443 and 80.
func newPebble(t *testing.T, program, tlsPort, httpPort string) *pebble {
	t.Helper()
	dir := t.TempDir()
	own := issue(t, "Pebble's own")
	port, management := thirdparty.FreePort(t), thirdparty.FreePort(t)
	number := func(port string) int {
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + port, "managementListenAddress": "127.0.0.1:" + management,
		"certificate": own.cert, "privateKey": own.key,
		"tlsPort": number(tlsPort), "httpPort": number(httpPort),
	}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-config", thirdparty.Config(t, dir, "pebble.json", string(config)), "-dnsserver", nameServer(t))
	cmd.Env = agent.Environment("PEBBLE_VA_NOSLEEP=1", "PEBBLE_VA_ALWAYS_VALID=0", "PEBBLE_WFE_NONCEREJECT=0")
	p := &pebble{
		Process:   agent.Start(t, "pebble", cmd),
		directory: "https://127.0.0.1:" + port + "/dir", authority: own.authority, roots: filepath.Join(dir, "roots.pem"),
	}
	p.ExpectText(patience, "ACME directory available")
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(own.authority)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	for _, url := range []string{p.directory, "https://127.0.0.1:" + management + "/roots/0"} {
		pem = getWhenReady(t, client, url)
	}
	if err := os.WriteFile(p.roots, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// getWhenReady asks again until somebody listens.
func getWhenReady(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	for {
		resp, err := client.Get(url)
		if err == nil {
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return body
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// nameServer answers, over TCP as Pebble asks, that every name is 127.0.0.1.
func nameServer(t *testing.T) (address string) {
	t.Helper()
	return serve(t, func(conn *net.TCPConn) {
		for {
			var size [2]byte
			if _, err := io.ReadFull(conn, size[:]); err != nil {
				return
			}
			question := make([]byte, binary.BigEndian.Uint16(size[:]))
			var m dnsmessage.Message
			if _, err := io.ReadFull(conn, question); err != nil || m.Unpack(question) != nil || len(m.Questions) != 1 {
				return
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			answer, err := m.AppendPack(size[:])
			if err != nil {
				return
			}
			binary.BigEndian.PutUint16(answer, uint16(len(answer)-len(size)))
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	})
}

// A server gets its certificate from a real ACME server by either challenge, a client trusts it, and a
// restart needs neither. That clients have to show a certificate does not keep the authority out.
func TestACME(t *testing.T) {
	const domain = "tunnel.example.com"
	_, readme, _ := strings.Cut(readmeBlocks(t)["run: front server"], "--acme-domain "+domain+" ")
	site := strings.Fields(strings.ReplaceAll(readme, "/var/www/html", t.TempDir()))
	if len(site) < 3 {
		t.Fatalf("the README's command goes on with %q", readme)
	}
	program := buildPebble(t)
	t.Run("none", func(t *testing.T) { testACMEFails(t, program) })
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			port, httpPort, nowhere := thirdparty.FreePort(t), thirdparty.FreePort(t), thirdparty.FreePort(t)
			clients := issue(t, "Clients")
			cache := filepath.Join(t.TempDir(), "acme")
			flags := append(slices.Clip(site), "--client-ca", clients.authority, "--client-cert", "require", "--acme-cache", cache, "--acme-email", "admin@culvert.example")
			var authority *pebble
			if challenge == "tls-alpn-01" {
				authority = newPebble(t, program, port, nowhere)
			} else {
				authority = newPebble(t, program, nowhere, httpPort)
				flags = append(flags, "--acme-http", "127.0.0.1:"+httpPort)
			}
			flags = append(flags, "--acme-domain", domain, "--acme-directory", authority.directory, "--acme-ca", authority.authority)

			r := &rig{t: t, programs: programs}
			started := time.Now()
			r.startServer("127.0.0.1:"+port, flags...)
			r.server.Find(patience, "certificate ready", "domain", domain)
			t.Logf("a certificate by %s after %v", challenge, time.Since(started).Round(time.Millisecond))
			if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the cache is %v, %v", info.Mode(), err)
			}

			target := serve(t, echo)
			through := func() {
				t.Helper()
				r.startClient("wss://"+net.JoinHostPort(domain, port), "--dial-address", "127.0.0.1:"+port, "--tls-ca", authority.roots,
					"--tls-cert", clients.cert, "--tls-key", clients.key, "-L", "0:"+target)
				conn, err := net.Dial("tcp", r.forward(target))
				if err != nil {
					t.Fatal(err)
				}
				extend(t, conn, patience)
				write(t, conn, "hello")
				wantBytes(t, conn, "hello")
				conn.Close()
				r.client.Stop(patience)
			}
			through()
			if challenge == "http-01" { // a browser at port 80
				conn, err := net.Dial("tcp", "127.0.0.1:"+httpPort)
				if err != nil {
					t.Fatal(err)
				}
				extend(t, conn, patience)
				write(t, conn, "GET /a HTTP/1.1\r\nHost: "+domain+"\r\nConnection: close\r\n\r\n")
				if answer, _ := io.ReadAll(conn); !strings.Contains(string(answer), "Location: https://"+domain+"/a\r\n") {
					t.Errorf("port 80 answers %q", answer)
				}
				conn.Close()
			}

			r.server.Stop(patience)
			asked := len(authority.Lines())
			r.startServer("127.0.0.1:"+port, flags...)
			through()
			if later := authority.Lines()[asked:]; len(later) > 0 {
				t.Errorf("after a restart the authority was asked: %q", later)
			}
			r.server.Stop(patience)
		})
	}
}

// A server that gets no certificate says why, once, in one line, and goes on.
func testACMEFails(t *testing.T, program string) {
	t.Parallel()
	const domain = "elsewhere.culvert.example"
	nowhere := thirdparty.FreePort(t)
	authority := newPebble(t, program, nowhere, nowhere)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0", "--acme-domain", domain, "--acme-directory", authority.directory, "--acme-ca", authority.authority, "--acme-cache", t.TempDir())
	line := r.server.Find(patience, "no certificate")
	if line.Level != "ERROR" || line.Attrs["domain"] != domain || !strings.Contains(line.Attrs["reason"], "tls-alpn-01: ") || !strings.Contains(line.Attrs["reason"], "127.0.0.1:"+nowhere) {
		t.Errorf("it says %s", line)
	}
	for _, name := range []string{domain, "other.culvert.example", domain} {
		conn, err := tls.Dial("tcp", r.address, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			t.Errorf("there is a certificate for %s", name)
		}
	}
	if code := r.server.Stop(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if lines := slices.DeleteFunc(r.server.Lines(), func(l agent.Line) bool { return l.Level != "ERROR" && l.Level != "WARN" }); len(lines) != 1 {
		t.Errorf("it says %q", lines)
	}
}
