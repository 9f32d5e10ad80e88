package carrier

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

const maxProxyBody = 64 << 10 // of a 407, to be read for the next answer on the same connection

// forwardProxy is a proxy on the way to the server, by whose leave there is a
// tunnel through it.
type forwardProxy struct {
	scheme         string // http, https or socks5
	addr           string // host:port
	credential     bool   // there is one:
	user, password string
	agent          string // the User-Agent of the upgrade request, "" for net/http's
	tls            *tls.Config
	dial           func(ctx context.Context, network, addr string) (net.Conn, error)
	memory         *proxyMemory // which credential it has accepted; may be nil
	progress       *progress    // of the dial
}

// proxy returns the proxy on the way to the server, or nil, for the upgrade
// request r. Its errors never have the proxy's URL, which may hold a
// password.
func (d *Dialer) proxy(r *request) (*forwardProxy, error) {
	if d.Proxy == nil {
		return nil, nil
	}
	server := *d.URL
	server.Scheme = "http"
	if d.secure() {
		server.Scheme = "https"
	}
	u, err := d.Proxy(&server)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if u == nil {
		return nil, nil
	}
	port := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	if port == "" {
		return nil, fmt.Errorf("%w: proxy of scheme %q, which is not http, https or socks5", ErrInvalidDialer, u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("%w: proxy without a host", ErrInvalidDialer)
	}
	p := &forwardProxy{
		scheme:     strings.TrimSuffix(u.Scheme, "h"), // names are the proxy's to resolve in any case
		addr:       net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)),
		credential: u.User != nil,
		agent:      r.header.Get("User-Agent"),
		tls:        HardenTLS(&tls.Config{ServerName: u.Hostname(), RootCAs: d.roots()}),
		dial:       d.netDial(),
		memory:     d.Ladder.proxyMemory(),
		progress:   r.progress,
	}
	if u.User != nil {
		p.user = u.User.Username()
		p.password, _ = u.User.Password()
	}
	if p.scheme == "socks5" {
		if p.credential && (p.user == "" || len(p.user) > maxSOCKS || len(p.password) > maxSOCKS) {
			return nil, fmt.Errorf("%w: SOCKS proxy with a user name or password that is empty or of more than %d bytes", ErrInvalidDialer, maxSOCKS)
		}
		if host, _, _ := net.SplitHostPort(d.addr()); len(host) > maxSOCKS {
			return nil, fmt.Errorf("%w: host of more than %d bytes for a SOCKS proxy", ErrInvalidDialer, maxSOCKS)
		}
	}
	// Whoever is at the other end of the tunnel, and whatever is between the
	// proxy and that, is not on this machine, or nobody can tell.
	if r.guarded {
		return nil, fmt.Errorf("%w: it would go through the proxy %s", ErrPlaintextCredential, p.addr)
	}
	return p, nil
}

func (d *Dialer) roots() *x509.CertPool {
	if d.TLS == nil {
		return nil
	}
	return d.TLS.RootCAs
}

// secrets are what no error may show, whoever says it back; a proxy may know what
// was sent by an earlier dial.
func (p *forwardProxy) secrets() secrets { return secrets{p.password, basic(p.user, p.password)} }

// tunnel connects to the proxy and has it connect to target ("host:port"). The
// conn is a *wire or has one below it.
func (p *forwardProxy) tunnel(ctx context.Context, target string) (net.Conn, error) {
	if p.scheme != "socks5" {
		return p.connect(ctx, target)
	}
	h, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	p.progress.waits("the answer of the SOCKS proxy %s", p.addr)
	if err := p.socks(h.Conn, target); err != nil {
		h.close()
		return nil, err
	}
	return h.tunnel()
}

// plain connects to the proxy and asks for nothing: requests follow, each with the
// whole URL. Every error is a *DialError.
func (p *forwardProxy) plain(ctx context.Context) (net.Conn, error) {
	h, err := p.open(ctx)
	if err != nil {
		return nil, &DialError{PhaseProxy, p.addr, because(ctx, err)}
	}
	return h.tunnel()
}

// proxyConn is a connection to a proxy that is no tunnel yet. It is closed when
// the context of the dial ends.
type proxyConn struct {
	net.Conn // the wire or TLS
	in       limited
	answers  *bufio.Reader // of in
	stop     func() bool   // ends the watch over the context
}

// open connects to the proxy, TLS included.
func (p *forwardProxy) open(ctx context.Context) (*proxyConn, error) {
	p.progress.waits("a TCP connection to the proxy %s", p.addr)
	conn, err := p.dial(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	var over net.Conn = newWire(conn)
	if p.scheme == "https" {
		p.progress.waits("the TLS handshake with the proxy %s", p.addr)
		secured := tls.Client(over, p.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, tlsFailed(err, p.tls, p.scheme, "http", ErrNotProxy)
		}
		over = secured
	}
	h := &proxyConn{Conn: over, in: limited{from: over}}
	h.answers = bufio.NewReader(&h.in)
	h.stop = context.AfterFunc(ctx, func() { conn.Close() })
	return h, nil
}

func (h *proxyConn) close() {
	h.stop()
	socketOf(h.Conn).Close() // TLS would wait for the proxy
}

// tunnel returns what the conn is once the proxy has connected it.
func (h *proxyConn) tunnel() (net.Conn, error) {
	if !h.stop() {
		return nil, net.ErrClosed
	}
	early, _ := h.answers.Peek(h.answers.Buffered())
	if len(early) == 0 {
		return h.Conn, nil
	}
	return &prefixed{Conn: h.Conn, prefix: early}, nil
}

// prefixed is a conn of which some bytes have been read already.
type prefixed struct {
	net.Conn
	prefix []byte // owned by the reader
}

func (c *prefixed) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// NetConn returns the conn below, as tls.Conn's method of this name does.
func (c *prefixed) NetConn() net.Conn { return c.Conn }

var errTooLong = errors.New("answer without an end")

// limited reads so many more bytes, and keeps the error that ended it.
type limited struct {
	from io.Reader
	left int
	err  error
}

func (l *limited) Read(p []byte) (n int, err error) {
	switch {
	case l.err != nil:
	case l.left <= 0:
		l.err = errTooLong
	default:
		n, l.err = l.from.Read(p[:min(len(p), l.left)])
		l.left -= n
	}
	return n, l.err
}
