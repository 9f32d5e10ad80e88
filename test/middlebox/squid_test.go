package middlebox

import (
	"crypto/md5"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/mux/carrier/carriertest"
	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// Who may use the proxies that want to know.
const (
	squidUser     = "alice"
	squidPassword = "open:s@same"
	squidRealm    = "the office"
	squidHash     = "$apr1$culvert0$BXet.A91QDGD2KVVXcwWm." // of the password, by openssl passwd -apr1
)

// squid is a proxy that leads to one port of this machine, by the names localhost and tunnel.test, which
// only it can resolve: with CONNECT, or with requests that it passes on. auth is none, or the schemes that
// it offers, in this order: basic, digest, negotiate (Kerberos) and ntlm (which takes any password), with a
// space between them.
type squid struct {
	address string
	log     string // file
}

func newSquid(t *testing.T, auth, port string) *squid { return newSquidFor(t, "CONNECT", auth, port) }

func newSquidFor(t *testing.T, method, auth, port string) *squid {
	t.Helper()
	const helpers = "/usr/lib/squid"
	program := thirdparty.Program(t, "squid")
	account := thirdparty.NewAccount(t, "proxy")
	s := &squid{address: "127.0.0.1:" + thirdparty.FreePort(t), log: filepath.Join(account.Dir, "access.log")}
	account.Config(t, "hosts", "127.0.0.1 localhost tunnel.test\n")
	var schemes, allowed string
	for _, scheme := range strings.Fields(strings.TrimPrefix(auth, "none")) {
		var helper string
		switch scheme {
		case "basic":
			account.Config(t, "passwords", squidUser+":"+squidHash+"\n")
			helper = thirdparty.Program(t, "basic_ncsa_auth", helpers) + " DIR/passwords"
		case "digest":
			hash := md5.Sum([]byte(squidUser + ":" + squidRealm + ":" + squidPassword))
			account.Config(t, "passwords", fmt.Sprintf("%s:%s:%x\n", squidUser, squidRealm, hash))
			helper = thirdparty.Program(t, "digest_file_auth", helpers) + " -c DIR/passwords"
		case "negotiate":
			helper = thirdparty.Program(t, "negotiate_kerberos_auth", helpers) + " -s GSS_C_NO_NAME"
		case "ntlm":
			helper = thirdparty.Program(t, "ntlm_fake_auth", helpers)
		}
		schemes += "auth_param " + scheme + " program " + helper + "\nauth_param " + scheme + " children 1\n"
		if scheme == "basic" || scheme == "digest" {
			schemes += "auth_param " + scheme + " realm " + squidRealm + "\n"
		}
		allowed = " known"
	}
	if allowed != "" {
		schemes += "acl known proxy_auth REQUIRED\n"
	}
	file := account.Config(t, "squid.conf", schemes+`
http_port ADDRESS
acl CONNECT method CONNECT
acl tunnel port PORT
http_access allow METHOD tunnel`+allowed+`
http_access deny all
hosts_file DIR/hosts
access_log stdio:DIR/access.log
cache_log DIR/cache.log
coredump_dir DIR
pid_filename none
netdb_filename none
pinger_enable off
cache deny all
visible_hostname squid.test
`, "ADDRESS", s.address, "PORT", port, "METHOD", method)
	// Its helpers end with it, for want of input.
	agent.Start(t, "squid", account.Command(program, "-N", "-d", "1", "-f", file)).ExpectText(patience, "Accepting HTTP Socket connections")
	return s
}

// url is the proxy's, with a credential unless user is "".
func (s *squid) url(user, password string) string {
	u := url.URL{Scheme: "http", Host: s.address}
	if user != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// certificate writes a certificate for localhost and its key to files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	pair, _ := carriertest.Certificate(t)
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// Through Squid, wss and plain ws, whichever way it wants to know who asks.
func TestSquid(t *testing.T) {
	t.Parallel()
	target := website(t, "behind the proxy")
	cert, key := certificate(t)
	plain, plainToken := newServer(t)
	secure, secureToken := newServer(t, "--tls-cert", cert, "--tls-key", key)
	for _, auth := range []string{"none", "basic", "digest", "ntlm", "negotiate basic"} {
		for _, c := range []struct {
			name, port string
			flags      []string
			variable   string
		}{
			{"wss", secure, []string{"--server", "wss://tunnel.test:" + secure, "--token-file", secureToken,
				"--tls-ca", cert, "--tls-server-name", "localhost"}, "HTTPS_PROXY"},
			{"ws", plain, []string{"--server", "ws://tunnel.test:" + plain, "--token-file", plainToken,
				"--allow-plaintext"}, "HTTP_PROXY"},
		} {
			t.Run(auth+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := newSquid(t, auth, c.port)
				proxy := s.url("", "")
				if auth != "none" {
					proxy = s.url(squidUser, squidPassword)
				}
				for name, how := range map[string]struct{ flags, env []string }{
					"flag":        {[]string{"--proxy", proxy}, []string{"ALL_PROXY=http://192.0.2.1"}},
					"environment": {nil, []string{c.variable + "=" + proxy}},
				} {
					client, forward := newClient(t, how.env, target, append(how.flags, c.flags...)...)
					if got := client.Find(patience, "session opened").Attrs["proxy"]; got != s.address {
						t.Errorf("%s: the proxy is %q", name, got)
					}
					if got := get(t, forward); got != "behind the proxy" {
						t.Errorf("%s: got %q", name, got)
					}
					if code := client.Stop(patience); code != 0 {
						t.Errorf("%s: exit code %d", name, code)
					}
					for _, line := range client.Lines() {
						if strings.Contains(line.Text, squidPassword) || strings.Contains(line.Text, url.QueryEscape(squidPassword)) {
							t.Errorf("a secret in the log: %s", line)
						}
					}
				}
				log, err := os.ReadFile(s.log)
				if err != nil || !strings.Contains(string(log), "CONNECT tunnel.test:"+c.port) {
					t.Errorf("what Squid has seen: %v\n%s", err, log)
				}
			})
		}
	}
}

// Squid as it is installed connects to the port of https only, and passes plain requests on: without their
// Upgrade. A tunnel comes up all the same.
func TestSquidWithoutCONNECT(t *testing.T) {
	t.Parallel()
	target := website(t, "behind the proxy")
	port, tokenFile := newServer(t)
	for _, auth := range []string{"none", "basic"} {
		t.Run(auth, func(t *testing.T) {
			t.Parallel()
			s := newSquidFor(t, "!CONNECT", auth, port)
			proxy := s.url("", "")
			if auth != "none" {
				proxy = s.url(squidUser, squidPassword)
			}
			started := time.Now()
			client, forward := newClient(t, nil, target, "--proxy", proxy, "--allow-plaintext",
				"--server", "ws://tunnel.test:"+port, "--token-file", tokenFile)
			t.Logf("up after %v", time.Since(started).Round(time.Millisecond))
			opened := client.Find(patience, "session opened").Attrs
			if opened["carrier"] != "http" || opened["proxy"] != s.address {
				t.Errorf("session opened with %v", opened)
			}
			if got := get(t, forward); got != "behind the proxy" {
				t.Errorf("got %q", got)
			}
			for _, line := range client.Lines() {
				if strings.Contains(line.Text, squidPassword) || strings.Contains(line.Text, url.QueryEscape(squidPassword)) {
					t.Errorf("a secret in the log: %s", line)
				}
			}
		})
	}
}

// Through Tinyproxy, which wants a password.
func TestTinyproxy(t *testing.T) {
	t.Parallel()
	target := website(t, "behind the proxy")
	port, tokenFile := newServer(t)
	proxyPort := thirdparty.FreePort(t)
	dir := t.TempDir()
	file := thirdparty.Config(t, dir, "tinyproxy.conf", `
Port PORT
Listen 127.0.0.1
Timeout 60
LogLevel Info
BasicAuth alice sesame
ConnectPort SERVER
`, "PORT", proxyPort, "SERVER", port)
	agent.Start(t, "tinyproxy", exec.Command(thirdparty.Program(t, "tinyproxy"), "-d", "-c", file)).ExpectText(patience, "Accepting connections")
	flags := []string{"--server", "ws://localhost:" + port, "--token-file", tokenFile, "--allow-plaintext"}
	proxy := func(password string) string { return "http://alice:" + password + "@127.0.0.1:" + proxyPort }
	client, forward := newClient(t, nil, target, append(flags, "--proxy", proxy("sesame"))...)
	if got := get(t, forward); got != "behind the proxy" {
		t.Errorf("got %q", got)
	}
	client.Stop(patience)
	line, code := fails(t, nil, []string{"another"}, append(flags, "--proxy", proxy("another"))...)
	if code != 3 || !strings.Contains(line, "user name or password not accepted (Basic)") {
		t.Errorf("wrong password: exit code %d", code)
	}
}

// Where Squid refuses, one line says so, and the exit code whether to try again.
func TestSquidRefuses(t *testing.T) {
	t.Parallel()
	port := thirdparty.FreePort(t)
	other := thirdparty.FreePort(t)
	const refused, failed = 3, 1
	for _, c := range []struct {
		name           string
		auth           string
		port           string
		user, password string
		code           int
		says           []string
	}{
		{"no credential, Basic", "basic", port, "", "", refused, []string{"407 Proxy Authentication Required", `["Basic"]`, "--proxy http://USER:PASSWORD@HOST:PORT"}},
		{"no credential, Digest", "digest", port, "", "", refused, []string{"407 Proxy Authentication Required", `["Digest"]`, "--proxy http://USER:PASSWORD@HOST:PORT"}},
		{"wrong password, Basic", "basic", port, squidUser, "wrong:s@same", refused, []string{"407", "not accepted (Basic)"}},
		{"Kerberos only", "negotiate", port, squidUser, squidPassword, refused, []string{"407", "was not given the password", `["Negotiate"]`, "Kerberos"}},
		{"wrong password, after Kerberos", "negotiate basic", port, squidUser, "wrong:s@same", refused, []string{"407", "not accepted (Basic)"}},
		{"wrong password, Digest", "digest", port, squidUser, "wrong:s@same", refused, []string{"407", "not accepted (Digest)"}},
		{"a port that it does not allow", "none", other, "", "", refused, []string{"403 Forbidden from the proxy "}},
		{"a server that is not there", "none", port, "", "", failed, []string{"503 Service Unavailable from the proxy "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSquid(t, c.auth, port)
			line, code := fails(t, nil, []string{"s@same", "s%40same"}, "--server", "ws://tunnel.test:"+c.port, "--proxy", s.url(c.user, c.password))
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, says := range append(c.says, s.address, "squid/") {
				if !strings.Contains(line, says) {
					t.Errorf("%q does not say %q", line, says)
				}
			}
		})
	}
}

// A token that would leave the proxy in plain text does not reach it.
func TestPlaintextThroughAProxy(t *testing.T) {
	t.Parallel()
	port, tokenFile := newServer(t)
	for _, c := range []struct{ name, host string }{{"this machine, as the proxy sees it", "127.0.0.1"}, {"elsewhere", "tunnel.test"}} {
		line, code := fails(t, nil, []string{token}, "--server", "ws://"+c.host+":"+port, "--token-file", tokenFile, "--proxy", "http://127.0.0.1:9")
		if code != 3 || !strings.Contains(line, "--allow-plaintext") {
			t.Errorf("%s: exit code %d", c.name, code)
		}
	}
}
