package middlebox

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// doctor runs culvert-client doctor and returns what it printed, and its exit code.
func doctor(t *testing.T, flags ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, programs.Client, append([]string{"doctor"}, flags...)...)
	cmd.Env = agent.Environment()
	return diagnose(t, cmd)
}

func diagnose(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("exit code %d\n%s%s", cmd.ProcessState.ExitCode(), &out, &log)
	return out.String(), log.String(), cmd.ProcessState.ExitCode()
}

// The doctor names the box at fault, says what it does, and what to do about it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	const long = "17s" // with the next time of quiet and its answer after 5 s
	port, tokenFile := newServer(t)
	server := "127.0.0.1:" + port
	through := func(front string, flags ...string) []string {
		return append([]string{"--server", "ws://" + front, "--token-file", tokenFile}, flags...)
	}
	direct := through(server)
	cert, key := certificate(t)
	secure, secureToken := newServer(t, "--tls-cert", cert, "--tls-key", key)
	for _, c := range []struct {
		name  string
		flags func(t *testing.T) []string
		code  int
		want  []string // parts of what is printed; a line that begins with - is advice
	}{
		{"nothing in the way", func(*testing.T) []string { return direct }, 0, []string{
			"connect       ok    " + server,
			"http          ok    an ordinary request is answered 404 Not Found by nobody who gives a name",
			"websocket     ok    comes up in ", "http carrier  ok    comes up in ", "credential accepted",
			"round trip    ok    ", "download      ok    ", "upload        ok    ",
			"\n\nA tunnel works.\n",
		}},
		{"forwards", func(t *testing.T) []string {
			return append(direct, "-L", "0:"+here.serve(t, echo), "-R", "0:"+here.serve(t, echo))
		}, 0, []string{
			"forward       ok    -L ", ": the server reaches 127.0.0.1:", "forward       ok    -R ", ": the server can listen at 127.0.0.1:", " answers here",
			"\nA tunnel works.\n",
		}},
		{"forwards that fail", func(*testing.T) []string {
			return append(direct, "-L", "5432:127.0.0.1:1", "-R", "0:127.0.0.1:1")
		}, 1, []string{
			"forward       FAIL  -L localhost:5432:127.0.0.1:1: at the server, 127.0.0.1:1 cannot be reached: refused: connection refused",
			"->  check that a service listens at 127.0.0.1:1, as seen from the server",
			"forward       FAIL  -R localhost:0:127.0.0.1:1: here, 127.0.0.1:1 cannot be reached: ",
			"->  check that a service listens at 127.0.0.1:1, as seen from this machine",
			"\nA tunnel works, but not all forwards: 2 of them would fail.\n",
		}},
		{"a forward that fails at both ends", func(*testing.T) []string {
			return append(direct, "-R", "*:0:127.0.0.1:1")
		}, 3, []string{
			": here, 127.0.0.1:1 cannot be reached: ", ": at the server, cannot listen at *:0: denied",
			"\nA tunnel works, but not all forwards: 1 of them would fail.\n",
		}},
		{"a forward that fails before one that ends the client", func(*testing.T) []string {
			return append(direct, "-L", "5432:127.0.0.1:1", "-R", "*:0:127.0.0.1:1")
		}, 3, []string{
			"-L localhost:5432:127.0.0.1:1: at the server, 127.0.0.1:1 cannot be reached: ", ": at the server, cannot listen at *:0: denied",
			"\nA tunnel works, but not all forwards: 2 of them would fail.\n", "culvert-client: -R *:0:127.0.0.1:1: at the server, cannot listen",
		}},
		{"a forward that is not allowed", func(t *testing.T) []string {
			return append(direct, "-R", "*:0:"+here.serve(t, echo))
		}, 3, []string{
			"forward       FAIL  -R *:0:127.0.0.1:", ": at the server, cannot listen at *:0: denied: denied by policy", "--gateway-ports",
		}},
		{"wrong credential", func(t *testing.T) []string {
			return []string{"--server", "ws://" + server, "--token", "another-token-than-the-right-one"}
		}, 3, []string{
			"websocket     FAIL  upgrade " + server + ": answered 401 Unauthorized",
			"No tunnel comes up.", "give a token that the server knows",
		}},
		{"another server", func(t *testing.T) []string {
			return through(strings.TrimPrefix(website(t, "a web site"), "http://"))
		}, 3, []string{"http          ok    an ordinary request is answered 200 OK", "not a culvert server", "No tunnel comes up."}},
		{"nobody", func(*testing.T) []string { return through("127.0.0.1:1") }, 1, []string{
			"connect       FAIL  connect 127.0.0.1:1: ", "connection refused", "No tunnel comes up.",
		}},
		{"no such name", func(*testing.T) []string { return through("tunnel.invalid:80", "--allow-plaintext") }, 1, []string{
			"resolve       FAIL  resolve tunnel.invalid:80: ", "No tunnel comes up.",
		}},
		{"unknown authority", func(*testing.T) []string {
			return []string{"--server", "wss://localhost:" + secure, "--token-file", secureToken}
		}, 3, []string{"connect       ok    127.0.0.1:" + secure, "tls           FAIL  tls localhost:" + secure, "issuer", "No tunnel comes up."}},
		{"own authority", func(*testing.T) []string {
			return []string{"--server", "wss://localhost:" + secure, "--token-file", secureToken, "--tls-ca", cert}
		}, 0, []string{"tls           ok    TLS 1.3, certificate of ", "issued by ", "verified", "A tunnel works."}},
		{"nginx without Upgrade", func(t *testing.T) []string { return through(thirdparty.Nginx(t, "127.0.0.1:"+port, "")) }, 0, []string{
			"http          ok    an ordinary request is answered 404 Not Found by \"nginx/",
			"websocket     FAIL  ", "http carrier  ok    ", "answers stream",
			"- \"nginx/", "does not let WebSocket upgrades pass: culvert uses HTTP requests by itself",
			"A tunnel works.",
		}},
		{"nginx that buffers", func(t *testing.T) []string {
			return through(thirdparty.Nginx(t, "127.0.0.1:"+port, "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"))
		}, 0, []string{"websocket     FAIL  ", "http carrier  ok    ", "answers are BUFFERED on the way", "A tunnel works."}},
		{"nginx without Upgrade, WebSocket wanted", func(t *testing.T) []string {
			return through(thirdparty.Nginx(t, "127.0.0.1:"+port, ""), "--carrier", "websocket")
		}, 3, []string{
			"websocket     FAIL  ", "http carrier  skip  ",
			"- no WebSocket comes up; without --carrier websocket culvert can do with HTTP requests",
			"No tunnel comes up.",
		}},
		{"nginx with a time-out", func(t *testing.T) []string {
			return through(thirdparty.Nginx(t, "127.0.0.1:"+port, thirdparty.NginxUpgrades+"proxy_read_timeout 5s;"), "--long", long)
		}, 0, []string{
			"lifetime      ok    a connection in use is not cut within ",
			"idle limit    warn  a connection that was idle for ", "s was closed",
			"- \"nginx/", "closes connections that are idle for ", "give --heartbeat 3",
			"A tunnel works.",
		}},
		{"HAProxy with a time-out", func(t *testing.T) []string {
			return through(newHAProxy(t, port, "timeout tunnel 5s").address, "--long", long)
		}, 0, []string{
			"idle limit    warn  a connection that was idle for ", "s was closed",
			"- something on the way closes connections that are idle for ", "give --heartbeat 3",
			"A tunnel works.",
		}},
		{"every connection ends at 10 s", func(t *testing.T) []string {
			box := newHAProxy(t, port, "timeout tunnel 1h")
			box.endAt(t, 10*time.Second)
			return through(box.address, "--long", long)
		}, 0, []string{
			"lifetime      warn  a connection that was in use was cut after ",
			"idle limit    ok    ", // what dies of age does not die of being idle
			"- something on the way cuts every connection after ",
			"A tunnel works.",
		}},
		{"Squid without a credential", func(t *testing.T) []string {
			return through(server, "--allow-plaintext", "--proxy", newSquid(t, "basic", port).url("", ""))
		}, 3, []string{"proxy         FAIL  proxy: 407 Proxy Authentication Required from the proxy 127.0.0.1:", "squid/", "--proxy http://USER:PASSWORD@HOST:PORT"}},
		{"Squid without CONNECT", func(t *testing.T) []string {
			return through(server, "--allow-plaintext", "--proxy", newSquidFor(t, "!CONNECT", "none", port).url("", ""))
		}, 0, []string{
			"proxy         FAIL  proxy: 403 Forbidden from the proxy 127.0.0.1:", "squid/", "http carrier  ok    ",
			"- the proxy 127.0.0.1:", "makes no tunnel to the server's port: culvert sends it HTTP requests instead",
			"A tunnel works.",
		}},
		{"Squid", func(t *testing.T) []string {
			return through(server, "--allow-plaintext", "--proxy", newSquid(t, "basic", port).url(squidUser, squidPassword))
		}, 0, []string{"proxy         ok    127.0.0.1:", " connects to the server", "websocket     ok    ", "A tunnel works."}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := doctor(t, c.flags(t)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			lines := strings.Split(stdout, "\n")
			for i, line := range lines {
				if strings.Contains(line, "  FAIL  ") && (i+1 == len(lines) || !strings.Contains(lines[i+1], "  ->  ")) {
					t.Errorf("no advice follows %q", line)
				}
			}
			for _, want := range c.want {
				if !strings.Contains(stdout+stderr, want) {
					t.Errorf("%q is not there", want)
				}
			}
		})
	}
}

// Machines get one object a line, and a diagnosis at the end.
func TestDoctorJSON(t *testing.T) {
	t.Parallel()
	port, tokenFile := newServer(t)
	stdout, _, code := doctor(t, "--json", "--server", "ws://"+thirdparty.Nginx(t, "127.0.0.1:"+port, ""), "--token-file", tokenFile)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	verdicts := make(map[string]string)
	for _, line := range lines[:len(lines)-1] {
		var finding struct {
			Step, Verdict, Text, Unit string
			Value                     float64
		}
		if err := json.Unmarshal([]byte(line), &finding); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		verdicts[finding.Step] = finding.Verdict
		if finding.Step == "download" && (finding.Value <= 0 || finding.Unit != "bytes/s") {
			t.Errorf("download is %v %s", finding.Value, finding.Unit)
		}
	}
	if verdicts["websocket"] != "FAIL" || verdicts["http carrier"] != "ok" || verdicts["upload"] != "ok" {
		t.Errorf("verdicts %v", verdicts)
	}
	var diagnosis struct {
		Works  bool
		Advice []string
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &diagnosis); err != nil {
		t.Fatal(err)
	}
	if !diagnosis.Works || len(diagnosis.Advice) != 1 {
		t.Errorf("diagnosis %+v", diagnosis)
	}
}
