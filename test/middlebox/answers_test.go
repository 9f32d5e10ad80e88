package middlebox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert/test/thirdparty"
)

// besides makes nginx listen at a second address, with parameters and directives of its own, and returns it.
func besides(t *testing.T, parameters, directives string) (address string) {
	t.Helper()
	address = "127.0.0.1:" + thirdparty.FreePort(t)
	thirdparty.Nginx(t, "127.0.0.1:9", "} listen "+address+" "+parameters+"; "+directives+" location /unused {")
	return address
}

// What a client is told about a front or a server that it asks in the wrong way, and whether trying again
// can help. The doctor says the same.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	both := filepath.Join(t.TempDir(), "both.pem")
	for _, file := range []string{cert, key} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.OpenFile(both, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
	plain, _ := newServer(t)
	secure, _ := newServer(t, "--tls-cert", cert, "--tls-key", key)
	nginxTLS := besides(t, "ssl", "ssl_certificate "+cert+"; ssl_certificate_key "+key+";")
	haproxyTLS := "127.0.0.1:" + thirdparty.FreePort(t)
	haproxy := newHAProxy(t, plain, "\nlisten secure\n\tbind "+haproxyTLS+" ssl crt "+both+"\n\tserver culvert 127.0.0.1:"+plain)
	nginx := thirdparty.Nginx(t, "127.0.0.1:"+plain, "")
	const (
		speaksTLS = "it speaks TLS on this port: use wss:// instead of ws://"
		noTLS     = "it speaks plain HTTP on this port, not TLS: use ws:// instead of wss://"
	)
	for _, c := range []struct {
		name  string
		flags []string
		says  []string
	}{
		{"ws to culvert's TLS", []string{"--server", "ws://127.0.0.1:" + secure}, []string{speaksTLS}},
		{"ws to nginx's TLS", []string{"--server", "ws://" + nginxTLS}, []string{speaksTLS}},
		{"ws to HAProxy's TLS", []string{"--server", "ws://" + haproxyTLS}, []string{speaksTLS}},
		{"HTTP requests to nginx's TLS", []string{"--server", "ws://" + nginxTLS, "--carrier", "http"}, []string{speaksTLS}},
		{"HTTP requests to HAProxy's TLS", []string{"--server", "ws://" + haproxyTLS, "--carrier", "http"}, []string{speaksTLS}},
		{"wss to culvert without TLS", []string{"--server", "wss://127.0.0.1:" + plain}, []string{noTLS}},
		{"wss to nginx without TLS", []string{"--server", "wss://" + nginx}, []string{noTLS}},
		{"wss to HAProxy without TLS", []string{"--server", "wss://" + haproxy.address}, []string{noTLS}},
		{"another authority", []string{"--server", "wss://127.0.0.1:" + secure, "--tls-ca", otherAuthority(t)}, []string{
			"certificate signed by none of the given authorities: issuer ", "no authority in the file of --tls-ca signed it",
		}},
		{"a path that is not there", []string{"--server", "ws://" + nginx + "/vpn"}, []string{`answered 404 Not Found for the path "/vpn"`}},
		{"HTTP/2 only", []string{"--server", "ws://" + besides(t, "http2", "")}, []string{"the front speaks HTTP/2 only", "switch HTTP/1.1 on"}},
		{"HTTP/2 only, HTTP requests", []string{"--server", "ws://" + besides(t, "http2", ""), "--carrier", "http"}, []string{"the front speaks HTTP/2 only"}},
		{"a header that is too large for culvert", []string{"--server", "ws://127.0.0.1:" + plain, "--header", "X-Long: " + strings.Repeat("x", 40<<10)}, []string{
			"answered 431 Request Header Fields Too Large", "the request has a header of about 41", "use a shorter token, or fewer or shorter headers",
		}},
		{"a header that is too large for nginx", []string{"--server", "ws://" + nginx, "--header", "X-Long: " + strings.Repeat("x", 12<<10)}, []string{
			"answered 400 Bad Request", "Request Header Or Cookie Too Large",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			line, code := fails(t, nil, nil, c.flags...)
			stdout, stderr, doctorCode := doctor(t, c.flags...)
			if code != 3 || doctorCode != code {
				t.Errorf("exit code %d, the doctor's %d", code, doctorCode)
			}
			for _, says := range c.says {
				for who, text := range map[string]string{"client": line, "doctor": stdout + stderr} {
					if !strings.Contains(text, says) {
						t.Errorf("the %s does not say %q", who, says)
					}
				}
			}
			if strings.Contains(line, "not a culvert server") != strings.Contains(c.name, "not there") || strings.Contains(line, "intercepts TLS") {
				t.Errorf("the client says %q", line)
			}
		})
	}
}

// otherAuthority is the certificate of an authority that signed nothing here.
func otherAuthority(t *testing.T) (file string) {
	cert, _ := certificate(t)
	return cert
}
