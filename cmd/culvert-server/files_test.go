package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"culvert/auth"
	"culvert/config"
)

// userFiles returns every kind of text file that a user gives to the server, by the
// option that names it; "issuer" is the file of an issuer's keys, "identity" one in the
// directory of --identities-dir.
func userFiles(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	certificate(t, in("cert.pem"), in("tls-key.pem"))
	if err := auth.NewPrivateKey("server").Save(in("key")); err != nil {
		t.Fatal(err)
	}
	content := func(name string) string { return readFile(t, in(name)) }
	authority, list := authorityAndList(t)
	return map[string]string{
		"token-file": secret + "\n",
		"tls-cert":   content("cert.pem"),
		"tls-key":    content("tls-key.pem"),
		"key-file":   content("key"),
		"client-ca":  authority,
		"crl":        list,
		"issuer":     content("cert.pem"),
		"identity":   "alice: {tokens: ['" + hash + "'], allow: everything}\n",
		"config":     "# the server\nlisten: 127.0.0.1:0\n",
	}
}

// arguments writes the files, which edit changes before, and returns the flags that
// name them.
func arguments(t *testing.T, files map[string]string, edit func(option, content string) string) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, option, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(edit(option, content)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "identities"), 0o700); err != nil {
		t.Fatal(err)
	}
	put("identities/alice.yaml", "identity", files["identity"])
	flags := map[string][]string{"identities-dir": {filepath.Join(dir, "identities")}}
	issuer := "issuers: [{issuer: 'https://issuer.example', audience: culvert, keys: '" + put("issuer", "issuer", files["issuer"]) + "'}]\n"
	for option, content := range files {
		switch option {
		case "identity", "issuer":
			continue
		case "config":
			content += issuer
		}
		flags[option] = []string{put(option, option, content)}
	}
	return flags
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func unchanged(_, content string) string { return content }

func checked(t *testing.T, flags map[string][]string) (stderr string, code int) {
	t.Helper()
	args := []string{"culvert-server", "check"}
	for option, values := range flags {
		args = append(args, "--"+option, values[0])
	}
	var out, err strings.Builder
	code = run(t.Context(), args, nil, &out, &err)
	return err.String(), code
}

// Every text file may begin with a byte order mark.
func TestByteOrderMark(t *testing.T) {
	flags := arguments(t, userFiles(t), func(_, content string) string { return "\ufeff" + content })
	if stderr, code := checked(t, flags); code != 0 || stderr != "" {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

// A file in UTF-16 is called that, whatever file it is.
func TestUTF16(t *testing.T) {
	files := userFiles(t)
	for _, wide := range slices.Sorted(maps.Keys(files)) {
		flags := arguments(t, files, func(option, content string) string {
			if option != wide {
				return content
			}
			encoded := []byte{0xff, 0xfe}
			for _, unit := range utf16.Encode([]rune(content)) {
				encoded = append(encoded, byte(unit), byte(unit>>8))
			}
			return string(encoded)
		})
		stderr, code := checked(t, flags)
		if lines := strings.Count(stderr, "\n"); code != 2 || lines != 1 || !strings.Contains(stderr, "the text is UTF-16; save it as UTF-8") {
			t.Errorf("%s: exit code %d\n%s", wide, code, stderr)
		}
	}
}

func TestPasswordWithByteOrderMark(t *testing.T) {
	for content, want := range map[string]string{"\ufeffopen sesame now\n": "", "\xff\xfeo\x00\n\x00": "UTF-16"} {
		var out, err strings.Builder
		code := run(t.Context(), []string{"culvert-server", "password"}, strings.NewReader(content), &out, &err)
		if want == "" && (code != 0 || !strings.HasPrefix(out.String(), "$argon2id$")) || !strings.Contains(err.String(), want) {
			t.Errorf("%q: exit code %d, %s", content, code, &err)
		}
	}
	one, err1 := readLine(strings.NewReader("\ufeffsesame\r\n"))
	if one != "sesame" || err1 != nil {
		t.Errorf("%q, %v", one, err1)
	}
}

// The server warns of certificates that are about to expire, and of those that have.
func TestExpiringCertificate(t *testing.T) {
	for _, tt := range []struct {
		left time.Duration
		want string
	}{
		{-time.Hour, "tunnel has expired ("},
		{13 * 24 * time.Hour, "tunnel expires soon ("},
		{15 * 24 * time.Hour, ""},
	} {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		certificateUntil(t, cert, key, time.Now().Add(tt.left))
		flags := map[string][]string{"token-file": {write(t, secret)}, "tls-cert": {cert}, "tls-key": {key}, "client-ca": {write(t, readFile(t, cert))}}
		stderr, code := checked(t, flags)
		if code != 0 || (stderr == "") != (tt.want == "") || strings.Count(stderr, tt.want) != 2 && tt.want != "" {
			t.Errorf("%v left: exit code %d, %s, want %q for both files", tt.left, code, stderr, tt.want)
		}
		flags["listen"] = []string{"127.0.0.1:0"}
		job, err := prepare(config.Sources{Flags: flags}, io.Discard, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(job.Warnings, "\n"); (text == "") != (tt.want == "") || !strings.Contains(text, tt.want) {
			t.Errorf("%v left: the server's start warns %q, want %q", tt.left, text, tt.want)
		}
		job.Close()
	}
}

// The server warns, once for each, of files and directories that others can change.
func TestLooseFiles(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // where modes say nothing
	}
	files := userFiles(t)
	flags := arguments(t, files, unchanged)
	flags["audit"] = []string{write(t, "")}
	flags["audit-max-size"] = []string{"1MiB"}
	dir := flags["identities-dir"][0]
	loose := map[string]os.FileMode{dir: 0o777, filepath.Join(dir, "alice.yaml"): 0o620, filepath.Join(filepath.Dir(dir), "issuer"): 0o602}
	for _, option := range []string{"config", "token-file", "tls-key", "key-file", "client-ca", "crl", "audit"} {
		loose[flags[option][0]] = 0o660
	}
	if stderr, code := checked(t, flags); code != 0 || stderr != "" {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	for path, mode := range loose {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if stderr, code := checked(t, flags); code != 0 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, path+": ") || !strings.Contains(stderr, "changed by others") {
			t.Errorf("%s with mode %o: exit code %d\n%s", path, mode, code, stderr)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	// The audit log is there for who may read it, but not for everybody.
	for mode, warned := range map[os.FileMode]bool{0o640: false, 0o644: true} {
		if err := os.Chmod(flags["audit"][0], mode); err != nil {
			t.Fatal(err)
		}
		if stderr, _ := checked(t, flags); strings.Contains(stderr, "audit log") != warned {
			t.Errorf("mode %o: %q, want a warning: %v", mode, stderr, warned)
		}
	}
}

// authorityAndList are an authority of client certificates and its revocation list.
func authorityAndList(t *testing.T) (authority, list string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour)}, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return block("CERTIFICATE", der), block("X509 CRL", crl)
}
