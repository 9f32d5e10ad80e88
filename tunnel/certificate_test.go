package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/mux/carrier"
	"culvert/test/thirdparty"
)

// authority issues the certificates of a test.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	ca := &authority{}
	made := ca.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	ca.cert, ca.key = made.Leaf, made.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

// issue makes a certificate as template says, the first one signed by itself.
func (ca *authority) issue(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca.serial++
	template.SerialNumber = big.NewInt(ca.serial)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.NotBefore = template.NotAfter.Add(-2 * time.Hour)
	parent, signer := template, key
	if ca.cert != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// client makes a client's certificate.
func (ca *authority) client(t *testing.T, name string, end time.Time) tls.Certificate {
	t.Helper()
	return ca.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// clientCAs are this authority, which has revoked some of its certificates.
func (ca *authority) clientCAs(t *testing.T, revoked ...tls.Certificate) *auth.ClientCAs {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := auth.NewClientCAs(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// directory knows alice by her certificate.
func (ca *authority) directory(t *testing.T, revoked ...tls.Certificate) *auth.Directory {
	t.Helper()
	name, err := auth.ParseCertificateName("subject:CN=alice")
	if err != nil {
		t.Fatal(err)
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{
		ClientCAs:  ca.clientCAs(t, revoked...),
		Identities: []auth.Identity{{Name: "alice", Certificates: []auth.CertificateName{name}, Policy: auth.Everything()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// startServer runs a server that knows alice by her certificate and asks for one.
func (ca *authority) startServer(t *testing.T) (server *agent, address string, guard *auth.Guard) {
	t.Helper()
	guard = auth.NewGuard(ca.directory(t))
	server, address = startServer(t, func(c *ServerConfig) {
		c.Guard = guard
		c.TLS = &tls.Config{
			Certificates: []tls.Certificate{ca.issue(t, &x509.Certificate{
				Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			})},
			ClientCAs: ca.clientCAs(t).Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
		}
	})
	return server, address, guard
}

// dial is the TLS settings of a client that shows these certificates.
func (ca *authority) dial(certs ...tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: certs, ServerName: "127.0.0.1"}
	c.RootCAs.AddCert(ca.cert)
	return c
}

// TestClientCertificate checks that a certificate opens the door, over a WebSocket and
// over an HTTP pipe, and that the door closes when the certificate is revoked.
func TestClientCertificate(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		t.Run(string(mode), func(t *testing.T) {
			ca := newAuthority(t)
			server, address, guard := ca.startServer(t)
			alice := ca.client(t, "alice", time.Time{})
			with := func(certs ...tls.Certificate) func(*ClientConfig) {
				return func(c *ClientConfig) {
					c.Servers = []*url.URL{{Scheme: "wss", Host: address}}
					c.Carrier, c.Credential = mode, nil
					c.TLS = ca.dial(certs...)
				}
			}
			for name, edit := range map[string]func(*ClientConfig){
				"no certificate": with(),
				"nobody's":       with(ca.client(t, "bob", time.Time{})),
				"a bad token beside a good certificate": func(c *ClientConfig) {
					with(alice)(c)
					c.Credential = func() (string, error) { return "wrong", nil }
				},
			} {
				if err := refusedWith(t, address, edit); !errors.Is(err, carrier.ErrUnauthorized) {
					t.Errorf("%s: %v", name, err)
				}
			}

			addr, conns := target(t)
			client := startClient(t, address, func(c *ClientConfig) {
				with(alice)(c)
				local(addr)(c)
			})
			exchange(t, connect(t, client.listening(t, "local")), within(t, conns, "connection to the target"))
			server.find(t, `msg="session opened"`, "client=alice")
			if mode == carrier.ModeHTTP {
				client.find(t, "carrier=http")
			}

			guard.Use(ca.directory(t, alice))
			server.find(t, `msg="credential ended"`, "client=alice", `credential="certificate CN=alice"`, "reason=\"credential was taken away\"")
			client.find(t, "answered 401") // at its next try
		})
	}
}

// TestCertificateEnds checks that a carrier does not outlive its certificate.
func TestCertificateEnds(t *testing.T) {
	ca := newAuthority(t)
	server, address, _ := ca.startServer(t)
	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	startClient(t, address, func(c *ClientConfig) {
		c.Servers = []*url.URL{{Scheme: "wss", Host: address}}
		c.Credential, c.TLS = nil, ca.dial(ca.client(t, "alice", end))
	})
	server.find(t, `msg="credential ended"`, "client=alice", "reason=\"credential has expired\"")
	if early := time.Until(end); early > 0 {
		t.Errorf("ended %v too early", early)
	}
}

// TestRawCertificate checks that a certificate counts only where nothing else is shown,
// and that it is looked at again when a resumed TLS session does not show it again.
func TestRawCertificate(t *testing.T) {
	ca := newAuthority(t)
	_, address, guard := ca.startServer(t)
	alice := ca.client(t, "alice", time.Time{})
	config := ca.dial(alice)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	ask := func(header string) (status int, resumed bool) {
		conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Write([]byte(upgradeRequest(address, header))); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, conn.(*tls.Conn).ConnectionState().DidResume
	}
	for i, want := range []bool{false, true} {
		if status, resumed := ask(""); status != http.StatusSwitchingProtocols || resumed != want {
			t.Errorf("connection %d: status %d, resumed %v", i, status, resumed)
		}
	}
	// A credential in the header decides, also one that cannot be read.
	for _, header := range []string{"Authorization: \r\n", "Authorization: Bearer \r\n", "Authorization: Digest x\r\n", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"} {
		if status, _ := ask(header); status != http.StatusUnauthorized {
			t.Errorf("%q beside a good certificate: status %d", header, status)
		}
	}
	guard.Use(ca.directory(t, alice))
	if status, resumed := ask(""); status != http.StatusUnauthorized || !resumed {
		t.Errorf("revoked: status %d, resumed %v", status, resumed)
	}
}

// upgradeRequest asks for a new session, with more lines in its header.
func upgradeRequest(host, header string) string {
	hello := append([]byte{1, 2}, rand.Text()[:16]...)
	hello = binary.BigEndian.AppendUint64(hello, 0)
	hello = binary.BigEndian.AppendUint32(hello, 128<<10)
	hello = binary.BigEndian.AppendUint32(hello, crc32.Checksum(hello, crc32.MakeTable(crc32.Castagnoli)))
	return "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: culvert.v1\r\n" +
		"Culvert-Hello: " + base64.RawURLEncoding.EncodeToString(hello) + "\r\n" + header + "\r\n"
}

// TestOpenSSL has another TLS stack than Go's show certificates.
func TestOpenSSL(t *testing.T) {
	openssl := thirdparty.Program(t, "openssl")
	ca, stranger := newAuthority(t), newAuthority(t)
	_, address, guard := ca.startServer(t)
	good, revoked := ca.client(t, "alice", time.Time{}), ca.client(t, "alice", time.Time{})
	guard.Use(ca.directory(t, revoked))
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := 0
	shown := func(cert tls.Certificate) []string {
		der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		files++
		return []string{
			"-cert", write(fmt.Sprintf("cert%d.pem", files), "CERTIFICATE", cert.Certificate[0]),
			"-key", write(fmt.Sprintf("key%d.pem", files), "PRIVATE KEY", der),
		}
	}
	authorities := write("ca.pem", "CERTIFICATE", ca.cert.Raw)
	for _, tt := range []struct {
		name  string
		flags []string
		want  string // the status, or what openssl says of the server's alert
	}{
		{"good", append(shown(good), "-tls1_3"), "HTTP/1.1 101 "},
		{"good, TLS 1.2", append(shown(good), "-tls1_2"), "HTTP/1.1 101 "},
		{"none", []string{"-tls1_3"}, "HTTP/1.1 401 "},
		{"of nobody", shown(ca.client(t, "bob", time.Time{})), "HTTP/1.1 401 "},
		{"revoked", append(shown(revoked), "-tls1_3"), "HTTP/1.1 401 "},
		{"revoked, TLS 1.2", append(shown(revoked), "-tls1_2"), "HTTP/1.1 401 "},
		{"of an unknown authority", shown(stranger.client(t, "alice", time.Time{})), "alert unknown ca"},
		{"expired", shown(ca.client(t, "alice", time.Now().Add(-time.Minute))), "alert certificate expired"},
		{"the server's own", shown(ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "alice"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})), "alert bad certificate"},
		{"TLS 1.1", append(shown(good), "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), "alert protocol version"},
		{"TLS 1.0", append(shown(good), "-tls1", "-cipher", "DEFAULT@SECLEVEL=0"), "alert protocol version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := sClient(t, openssl, address, authorities, tt.flags); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// sClient asks for an upgrade by OpenSSL's client and returns the status line, or all
// that it has to say if there is none.
func sClient(t *testing.T, openssl, address, authorities string, flags []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, append([]string{
		"s_client", "-connect", address, "-CAfile", authorities, "-verify_return_error", "-quiet",
	}, flags...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Write([]byte(upgradeRequest(address, ""))) // fails where the handshake does
	status, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		cancel() // it would stay
	}
	_ = cmd.Wait()
	if err == nil {
		return status
	}
	return said.String()
}
