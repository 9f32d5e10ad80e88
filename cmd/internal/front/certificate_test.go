package front_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/cmd/internal/front"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// pair is a new certificate and its key, as PEM.
func pair(t *testing.T) (cert, key []byte, leaf *x509.Certificate) {
	t.Helper()
	c, _ := carriertest.Certificate(t)
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), c.Leaf
}

// A certificate follows its files, within a second, and only if they are a pair.
func TestCertificateFollowsItsFiles(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		dir := t.TempDir()
		certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		written := time.Now()
		write := func(file string, content []byte) {
			t.Helper()
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			written = written.Add(time.Millisecond) // the clock of the files is another one than ours
			if err := os.Chtimes(file, written, written); err != nil {
				t.Fatal(err)
			}
		}
		cert1, key1, leaf1 := pair(t)
		cert2, key2, leaf2 := pair(t)
		write(certFile, cert1)
		write(keyFile, key2)
		load := func(certFile, keyFile string) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &pair, err
		}
		logger := slog.New(slog.NewTextHandler(&log, nil))
		if _, err := front.NewCertificate(certFile, keyFile, load, logger); err == nil {
			t.Error("a certificate and another's key are a pair")
		}
		write(keyFile, key1)
		c, err := front.NewCertificate(certFile, keyFile, load, logger)
		if err != nil {
			t.Fatal(err)
		}
		is := func(what string, want *x509.Certificate, logged string) {
			t.Helper()
			got, err := c.Get(&tls.ClientHelloInfo{})
			if err != nil || !got.Leaf.Equal(want) {
				t.Errorf("%s: the wrong certificate, %v", what, err)
			}
			if text := log.String(); logged == "" && text != "" || logged != "" && (strings.Count(text, "\n") != 1 || !strings.Contains(text, logged)) {
				t.Errorf("%s: logged %q, want one line with %q", what, text, logged)
			}
			log.Reset()
		}
		second := func() { time.Sleep(time.Second) }
		is("at first", leaf1, "")
		second()
		is("unchanged", leaf1, "")

		write(certFile, cert2)
		is("changed just now", leaf1, "")
		second()
		is("changed by half", leaf1, `level=WARN msg="certificate not changed"`)
		second()
		is("still", leaf1, "")
		write(keyFile, key2)
		second()
		is("changed", leaf2, `level=INFO msg="certificate changed"`)

		if err := os.Remove(certFile); err != nil {
			t.Fatal(err)
		}
		second()
		is("removed", leaf2, `level=WARN`)
		write(certFile, []byte("x"))
		second()
		is("nonsense", leaf2, `level=WARN`)
		write(keyFile, key1)
		write(certFile, cert1)
		second()
		is("back again", leaf1, `level=INFO`)
	})
}

// Files that could not be read for another reason than their content are read again,
// although they do not change. The log says so once for each reason.
func TestCertificateIsTriedAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cert1, _ := carriertest.Certificate(t)
		cert2, _ := carriertest.Certificate(t)
		file := filepath.Join(t.TempDir(), "cert.pem")
		few := func() (*tls.Certificate, error) {
			return nil, &os.PathError{Op: "open", Path: file, Err: syscall.EMFILE}
		}
		answers := []func() (*tls.Certificate, error){
			func() (*tls.Certificate, error) { return &cert1, nil },
			few, few,
			func() (*tls.Certificate, error) { return nil, errors.New("no pair") },
			few,
			func() (*tls.Certificate, error) { return &cert2, nil },
		}
		load := func(string, string) (*tls.Certificate, error) {
			answer := answers[0]
			answers = answers[1:]
			return answer()
		}
		c, err := front.NewCertificate(file, file, load, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		want := &cert1
		for range len(answers) + 3 {
			time.Sleep(time.Second)
			if len(answers) == 1 {
				want = &cert2
			}
			if got, err := c.Get(&tls.ClientHelloInfo{}); err != nil || got != want {
				t.Errorf("the wrong certificate, %v, with %d answers to come", err, len(answers))
			}
		}
		var got []string
		for line := range strings.Lines(log.String()) {
			_, text, _ := strings.Cut(line, " msg=")
			text, _, _ = strings.Cut(text, " file=")
			got = append(got, text)
		}
		no := `"certificate not changed"`
		if want := []string{no, no, no, `"certificate changed"`}; !slices.Equal(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
	})
}

// A file that takes the place of another one is noticed, even with the same size and time.
func TestCertificateOfTheSameTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file, next := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "next.pem")
		at := time.Unix(1, 0)
		for _, path := range []string{file, next} {
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		cert, _ := carriertest.Certificate(t)
		loads := 0
		load := func(string, string) (*tls.Certificate, error) {
			loads++
			return &cert, nil
		}
		c, err := front.NewCertificate(file, file, load, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		look := func() {
			time.Sleep(time.Second)
			if _, err := c.Get(&tls.ClientHelloInfo{}); err != nil {
				t.Fatal(err)
			}
		}
		look()
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
		look()
		look()
		if loads != 2 {
			t.Errorf("read %d times, want 2", loads)
		}
	})
}
