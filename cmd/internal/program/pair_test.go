package program

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"culvert/test/thirdparty"
)

// Each way in which a certificate and a key cannot be used has a message of its own.
func TestKeyPair(t *testing.T) {
	openssl := thirdparty.Program(t, "openssl")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	const ec = " -newkey ec -pkeyopt ec_paramgen_curve:P-256 "
	for _, args := range []string{
		"req -x509" + ec + "-nodes -keyout ca.key -out ca.pem -days 30 -subj /CN=ca",
		"req -x509" + ec + "-nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=tunnel -CA ca.pem -CAkey ca.key",
		"pkey -in key.pem -aes256 -passout pass:sesame -out encrypted.pem",
		"pkey -in key.pem -aes256 -traditional -passout pass:sesame -out traditional.pem",
	} {
		cmd := exec.CommandContext(t.Context(), openssl, strings.Fields(args)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args, err, out)
		}
	}
	join := func(to string, names ...string) {
		var all []byte
		for _, name := range names {
			text, err := os.ReadFile(in(name))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, text...)
		}
		if err := os.WriteFile(in(to), all, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	join("chain.pem", "cert.pem", "ca.pem")
	join("reversed.pem", "ca.pem", "cert.pem")
	join("both.pem", "key.pem", "cert.pem")

	const (
		passphrase = ": the private key is encrypted; give it without a passphrase, as openssl pkey -in FILE"
		order      = ": the certificates are in the wrong order: the certificate of the private key is number 2; put it first"
		mismatch   = "files that belong together"
	)
	for _, tt := range []struct{ cert, key, want string }{
		{"cert.pem", "key.pem", ""},
		{"chain.pem", "key.pem", ""},
		{"both.pem", "both.pem", ""},
		{"cert.pem", "encrypted.pem", "--tls-key: " + in("encrypted.pem") + passphrase},
		{"cert.pem", "traditional.pem", "--tls-key: " + in("traditional.pem") + passphrase},
		{"reversed.pem", "key.pem", "--tls-cert: " + in("reversed.pem") + order},
		{"ca.pem", "key.pem", mismatch},
		{"cert.pem", "ca.key", mismatch},
		{"key.pem", "cert.pem", mismatch},
		{"missing", "key.pem", "--tls-cert: open " + in("missing")},
		{"cert.pem", "missing", "--tls-key: open " + in("missing")},
	} {
		pair, err := KeyPair(in(tt.cert), in(tt.key))
		switch {
		case tt.want == "":
			if err != nil || pair == nil || pair.Leaf == nil {
				t.Errorf("%s with %s: %v", tt.cert, tt.key, err)
			}
		case err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") || len(Problems(err)) != 1:
			t.Errorf("%s with %s: %v, want %q", tt.cert, tt.key, err, tt.want)
		}
	}
}
