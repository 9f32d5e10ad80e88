package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/test/thirdparty"
)

// opensslCA makes an authority and its revocation list as an operator does, by
// OpenSSL's commands. Its certificate is the server's too.
func opensslCA(t *testing.T) (dir string) {
	t.Helper()
	openssl := thirdparty.Program(t, "openssl")
	dir = t.TempDir()
	const conf = "[ca]\ndefault_ca=c\n[c]\ndatabase=DIR/index\ndefault_md=sha256\ndefault_crl_days=1\n"
	thirdparty.Config(t, dir, "ca.conf", conf+"crlnumber=DIR/number\n")
	thirdparty.Config(t, dir, "version1.conf", conf)
	thirdparty.Config(t, dir, "index", "")
	thirdparty.Config(t, dir, "number", "01\n")
	for _, args := range []string{
		"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out ca.pem -days 30 -subj /CN=tunnel -addext keyUsage=keyCertSign,cRLSign,digitalSignature",
		"ca -config ca.conf -gencrl -cert ca.pem -keyfile key.pem -out crl.pem",
		"ca -config ca.conf -gencrl -cert ca.pem -keyfile key.pem -crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z -out past.pem",
		"ca -config version1.conf -gencrl -cert ca.pem -keyfile key.pem -out version1.pem",
		"crl -in crl.pem -outform DER -out crl.der",
		"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other.key -out other.pem -days 30 -subj /CN=tunnel",
	} {
		cmd := exec.CommandContext(t.Context(), openssl, strings.Fields(args)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args, err, out)
		}
	}
	return dir
}

func TestClientAuthorities(t *testing.T) {
	dir := opensslCA(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	args := func(more ...string) []string {
		return append([]string{"culvert-server", "--listen", "127.0.0.1:0", "--log-format", "json", "--grace", "0s",
			"--token-file", write(t, secret), "--tls-cert", in("ca.pem"), "--tls-key", in("key.pem")}, more...)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		stderr string
	}{
		{"no file", []string{"--client-ca", in("missing")}, "--client-ca: open "},
		{"no authorities", []string{"--client-ca", in("key.pem")}, "--client-ca: " + in("key.pem") + `: PEM block "PRIVATE KEY", not "CERTIFICATE"; give a PEM file`},
		{"no list", []string{"--client-ca", in("ca.pem"), "--crl", in("missing")}, "--crl: open "},
		{"another's list", []string{"--client-ca", in("other.pem"), "--crl", in("crl.pem")}, "--crl: " + in("crl.pem") + ": the revocation list of CN=tunnel is not signed by"},
		{"a list of version 1", []string{"--client-ca", in("ca.pem"), "--crl", in("version1.pem")}, "of version 2"},
		{"no lists at all", []string{"--client-ca", in("ca.pem"), "--crl", in("ca.pem")}, `not "X509 CRL"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			if code := run(t.Context(), args(tt.args...), nil, io.Discard, &stderr); code != 2 ||
				strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, stderr %q, want %q", code, &stderr, tt.stderr)
			}
		})
	}
	for _, tt := range []struct {
		list, warning string
	}{
		{"", ""},
		{"crl.pem", ""},
		{"crl.der", ""},
		{"past.pem", "the revocation list of CN=tunnel ended at"},
	} {
		t.Run("list "+tt.list, func(t *testing.T) {
			flags := []string{"--client-ca", in("ca.pem")}
			if tt.list != "" {
				flags = append(flags, "--crl", in(tt.list))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			log, w := io.Pipe()
			ended := make(chan int, 1)
			go func() {
				ended <- run(ctx, args(flags...), nil, io.Discard, w)
				w.Close()
			}()
			var text strings.Builder
			lines := json.NewDecoder(io.TeeReader(log, &text))
			address := ""
			for address == "" {
				var line struct{ Msg, Address string }
				if err := lines.Decode(&line); err != nil {
					t.Fatalf("%v after %s", err, &text)
				}
				address = line.Address
			}
			go func() { _, _ = io.Copy(io.Discard, log) }()
			if got := strings.Contains(text.String(), `"level":"WARN"`); got != (tt.warning != "") || !strings.Contains(text.String(), tt.warning) {
				t.Errorf("want the warning %q in:\n%s", tt.warning, &text)
			}
			asked := false
			conn, err := (&tls.Dialer{Config: &tls.Config{
				InsecureSkipVerify: true,
				GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					asked = len(r.AcceptableCAs) == 1
					return new(tls.Certificate), nil
				},
			}}).DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if !asked {
				t.Error("the server does not ask for a certificate of its authority")
			}
			cancel()
			if code := <-ended; code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}
