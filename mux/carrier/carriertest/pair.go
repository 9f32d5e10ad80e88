package carriertest

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"culvert/mux/carrier"
)

// Config says what Pair makes. The zero value is ws in memory with defaults.
type Config struct {
	carrier.Options
	ServerOptions *carrier.Options // nil means the same as Options
	TCP           bool             // over loopback, and not in memory
	TLS           bool             // wss
	Sealed        bool
	Path          *Path // the way in memory; nil means one that is never at fault
	HTTP          bool  // over an HTTP pipe, for which the server goes on; without Path
}

// Pair returns both ends of a carrier, made by a real upgrade. The ends are
// aborted and joined when the test is over, if they were not closed before. In a
// synctest bubble, Close them in the bubble.
func Pair(tb testing.TB, cfg Config) (client, server *carrier.Conn) {
	tb.Helper()
	dialer := &carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "127.0.0.1"}, Options: cfg.Options}
	var serverTLS *tls.Config
	if cfg.TLS {
		cert, pool := Certificate(tb)
		serverTLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		dialer.URL.Scheme = "wss"
		dialer.TLS = &tls.Config{RootCAs: pool}
	}

	var ln net.Listener
	if cfg.TCP {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			tb.Fatal(err)
		}
		dialer.URL.Host = ln.Addr().String()
	} else {
		path := cfg.Path
		if path == nil {
			path = NewPath()
		}
		network := NewNetwork()
		ln = network
		dialer.NetDial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			near, far := path.Ends()
			return near, network.Connect(ctx, far)
		}
	}

	var key *ecdh.PrivateKey
	if cfg.Sealed {
		key = Key(tb)
		dialer.Seal = func() (carrier.Seal, error) {
			return carrier.Seal{Server: [32]byte(key.PublicKey().Bytes())}, nil
		}
	}
	if cfg.HTTP {
		dialer.Mode = carrier.ModeHTTP
		if network, ok := ln.(*Network); ok {
			dialer.NetDial = network.Dial
		}
	}

	serverOptions := cfg.Options
	if cfg.ServerOptions != nil {
		serverOptions = *cfg.ServerOptions
	}
	accepted := make(chan *carrier.Conn, 1)
	srv := carrier.NewServer(carrier.ServerConfig{Handler: &carrier.Handler{
		Key: key,
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { accepted <- c }}, nil
		},
		Options: serverOptions,
	}})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln, serverTLS) }()
	client, _, err := dialer.Dial(ctx, nil)
	if err == nil {
		server = <-accepted
	}
	stop := func() {
		cancel()
		if err := <-served; err != nil {
			tb.Errorf("serve: %v", err)
		}
	}
	if cfg.HTTP && err == nil {
		tb.Cleanup(stop)
	} else {
		stop()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, c := range []*carrier.Conn{client, server} {
			c.Abort(nil)
			_ = c.Close("")
		}
	})
	return client, server
}

// Key returns a new private key for sealing.
func Key(tb testing.TB) *ecdh.PrivateKey {
	tb.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Certificate returns a new certificate for 127.0.0.1 and localhost, and a pool
// that trusts it. It holds for an hour, and in a synctest bubble too.
func Certificate(tb testing.TB) (tls.Certificate, *x509.CertPool) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "culvert test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}
