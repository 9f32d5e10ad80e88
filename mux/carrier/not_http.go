package carrier

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// notHTTPError is an answer that is not one of HTTP/1, with its first bytes.
type notHTTPError struct {
	begin string
	who   string // "front" or "proxy"
	kind  error  // what it is not: ErrNotCulvert or ErrNotProxy
}

func (e *notHTTPError) Error() string {
	if http2(e.begin) {
		return fmt.Sprintf("the %s %v", e.who, ErrHTTP2Only)
	}
	return fmt.Sprintf("%v: it answers %q, which is not HTTP", e.kind, e.begin)
}

func (e *notHTTPError) Unwrap() error {
	if http2(e.begin) {
		return ErrHTTP2Only
	}
	return e.kind
}

func notFrontHTTP(begin string) *notHTTPError { return &notHTTPError{begin, "front", ErrNotCulvert} }
func notProxyHTTP(begin string) *notHTTPError { return &notHTTPError{begin, "proxy", ErrNotProxy} }

// http2 reports whether begin is a frame of the whole connection (RFC 9113, 4.1) that a
// server may begin with: SETTINGS, or GOAWAY where it expected the client's preface.
func http2(begin string) bool {
	const header, settings, goAway = 9, 4, 7
	return len(begin) >= header && begin[0] == 0 && (begin[3] == settings || begin[3] == goAway) && begin[5:header] == "\x00\x00\x00\x00"
}

// http2Only reports whether a TLS handshake failed because the server accepts no
// HTTP/1.1 (RFC 7301, 3.2).
func http2Only(err error) bool {
	const noApplicationProtocol = tls.AlertError(120)
	alert, ok := remoteAlert(err)
	return ok && alert.Error() == noApplicationProtocol.Error() // the type of alerts is not exported
}

// remoteAlert returns the alert that the peer of a TLS handshake ended it with.
func remoteAlert(err error) (alert error, ok bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return nil, false
	}
	return op.Err, true
}

const http1 = "HTTP/"

// beginsHTTP reports whether first can be the beginning of an answer of HTTP/1.
func beginsHTTP(first []byte) bool {
	n := min(len(first), len(http1))
	return string(first[:n]) == http1[:n]
}

// answerConn is a connection to a server. Its Read fails with a *notHTTPError if the
// server's first bytes do not begin an answer of HTTP/1: net/http waits for the end of a
// line, and then says no more than that it is malformed.
type answerConn struct {
	net.Conn
	secrets secrets
	first   []byte // owned by the reader, as far as it is needed
}

func (c *answerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if len(c.first) >= len(http1) || n == 0 {
		return n, err
	}
	c.first = append(c.first, p[:min(n, maxFirst-len(c.first))]...)
	if !beginsHTTP(c.first) {
		return 0, notFrontHTTP(c.secrets.hideCut(string(c.first)))
	}
	return n, err
}

// NetConn returns the conn below, as tls.Conn's method of this name does.
func (c *answerConn) NetConn() net.Conn { return c.Conn }

// answerError is err, or the *notHTTPError in it without net/http's words around it.
func answerError(err error) error {
	if strange, ok := errors.AsType[*notHTTPError](err); ok {
		return strange
	}
	return err
}

// notTLS is the error for somebody who answers a TLS handshake with begin. use is the
// scheme for a URL like this one without TLS.
func notTLS(begin []byte, scheme, use string, kind error) error {
	if bytes.HasPrefix(begin, []byte(http1)) {
		return &SchemeError{Scheme: scheme, Use: use}
	}
	return fmt.Errorf("%w: it answers %q, which is not TLS", kind, begin)
}

// tlsProbe bounds the attempt to find out whether somebody speaks TLS.
const tlsProbe = 3 * time.Second

// checkScheme returns a *SchemeError instead of err, that of a Dial without TLS, if the
// server speaks TLS. Servers of TLS answer plain HTTP with 400, with an alert, or not at
// all, so that only a TLS handshake tells.
func (d *Dialer) checkScheme(ctx context.Context, r *request, err error) error {
	dial, ok := errors.AsType[*DialError](err)
	if !ok || d.secure() || dial.Phase != PhaseUpgrade || !mayBeTLS(err) {
		return err
	}
	if speaksTLS(ctx, func(ctx context.Context) (net.Conn, error) { return d.dialServer(ctx, r) }, d.serverName()) {
		return &DialError{PhaseUpgrade, d.addr(), &SchemeError{Scheme: d.URL.Scheme, Use: d.URL.Scheme + "s"}}
	}
	return err
}

// checkScheme does the same for a proxy that is dialled without TLS.
func (p *forwardProxy) checkScheme(ctx context.Context, err error) error {
	if p.scheme == "http" && mayBeTLS(err) &&
		speaksTLS(ctx, func(ctx context.Context) (net.Conn, error) { return p.dial(ctx, "tcp", p.addr) }, p.tls.ServerName) {
		return &SchemeError{Scheme: "http", Use: "https"}
	}
	return err
}

// speaksTLS reports whether somebody answers a TLS handshake as a server of TLS does.
func speaksTLS(ctx context.Context, dial func(context.Context) (net.Conn, error), name string) bool {
	ctx, cancel := context.WithTimeout(ctx, tlsProbe)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return false
	}
	defer socketOf(conn).Close()
	cfg := HardenTLS(&tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // nothing is sent over it
	err = tls.Client(conn, cfg).HandshakeContext(ctx)
	_, alert := remoteAlert(err)
	return err == nil || alert
}

// mayBeTLS reports whether plain HTTP was answered as by a server of TLS.
func mayBeTLS(err error) bool {
	if refused, ok := errors.AsType[*ProxyError](err); ok {
		return refused.Status == http.StatusBadRequest
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Token == "" && refused.Status == http.StatusBadRequest
	}
	if _, ok := errors.AsType[*notHTTPError](err); ok {
		return !errors.Is(err, ErrHTTP2Only)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return !op.Timeout()
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
