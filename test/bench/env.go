//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"culvert/test/netfault"
)

// patience is how long agents have to be ready, and a connection to be answered.
const patience = 15 * time.Second

// env is one load on one contender.
type env struct {
	load     load
	target   *target
	window   time.Duration
	agents   *agents
	entrance string // where the applications connect
	path     *netfault.Relay
	conns    []net.Conn
}

func (e *env) close() {
	for _, conn := range e.conns {
		_ = conn.Close()
	}
	e.target.release()
	e.agents.close()
	if e.path != nil {
		_ = e.path.Close()
	}
}

// ports are two addresses where nobody listens: for the server agent, and for the entrance.
func (e *env) ports() (server, entrance string, err error) {
	var found [2]string
	for i := range found {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer l.Close()
		found[i] = l.Addr().String()
	}
	return found[0], found[1], nil
}

// between puts the load's path in front of a server agent.
func (e *env) between(server string) (string, error) {
	if e.load.path == nil {
		return server, nil
	}
	r, err := netfault.Listen(server)
	if err != nil {
		return "", err
	}
	e.path = r
	e.load.path(r)
	return r.Addr(), nil
}

// await waits until somebody listens at addr.
func (e *env) await(addr string) error {
	for started := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if time.Since(started) > patience {
			return fmt.Errorf("nobody listens at %s: %w\n%s", addr, err, e.agents.said())
		}
	}
}

// ready waits until an echo comes back from the target.
func (e *env) ready(ctx context.Context) error {
	for started := time.Now(); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", e.entrance)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, err = conn.Write([]byte{doEcho, 'x'})
			if err == nil {
				_, err = io.ReadFull(conn, make([]byte, 1))
			}
			_ = conn.Close()
		}
		if err == nil {
			return nil
		}
		if time.Since(started) > patience {
			return fmt.Errorf("not ready: %w\n%s", err, e.agents.said())
		}
	}
	return context.Cause(ctx)
}

// open makes a connection to the target and tells it what to do. It is closed with the env.
func (e *env) open(order ...byte) (net.Conn, error) {
	conn, err := net.Dial("tcp", e.entrance)
	if err != nil {
		return nil, err
	}
	e.conns = append(e.conns, conn)
	_, err = conn.Write(order)
	return conn, err
}

// certificate makes a certificate for 127.0.0.1 and its key.
func certificate(dir string) (cert, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return "", "", err
	}
	return cert, key, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}
