package carrier

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	maxRefusalBody    = 200
	bodyRead          = 1024 // by the WebSocket library, of an answer that is not 101
	maxResponseHeader = 16 << 10
)

// Dialer makes carriers as a client. It is not changed by its methods, which may
// be called concurrently.
type Dialer struct {
	// URL is where the server is: ws or wss, or http or https for the same; the
	// path is "/" if empty. It holds no user name and no password.
	URL *url.URL

	// Header is sent with the request, Host included. It may not hold what the
	// upgrade itself needs, nor an Origin, which a server takes for a browser's.
	Header http.Header

	// Credential returns the bearer token and is asked at every Dial. Nil or ""
	// means none.
	Credential func() (string, error)

	// AllowPlaintext permits a credential over ws to a host that is not loopback.
	AllowPlaintext bool

	// TLS is used for wss, as a clone. The least version is 1.2 in any case, and
	// the server's name is that of the URL unless given. Nil means the defaults.
	TLS *tls.Config

	// Timeout bounds the whole of a Dial. Default 10 s.
	Timeout time.Duration

	// Proxy returns the forward proxy to the server at the URL it is given, whose
	// scheme is http or https, or nil for none: http, https (verified with TLS's
	// RootCAs against the proxy's name), socks5 or socks5h, the port 80, 443 or
	// 1080 unless given, with a user name and a password where the proxy wants
	// them. The server's name is the proxy's to resolve. It is asked at every Dial.
	// Nil means none.
	Proxy func(server *url.URL) (*url.URL, error)

	// NetDial makes the connection, to the proxy if there is one, TLS not
	// included. Nil means TCP straight to the address.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)

	Options
}

// Validate reports what makes every Dial fail before it touches the network:
// [ErrInvalidDialer], [ErrPlaintextCredential], or an error of Credential or
// Proxy, which it calls.
func (d *Dialer) Validate() error {
	header, err := d.request()
	if err == nil {
		_, err = d.proxy(header)
	}
	return err
}

// request checks the fields and returns the header of the upgrade request
// without the hello.
func (d *Dialer) request() (http.Header, error) {
	if d.URL == nil {
		return nil, fmt.Errorf("%w: no URL", ErrInvalidDialer)
	}
	switch d.URL.Scheme {
	case "ws", "wss", "http", "https":
	default:
		return nil, fmt.Errorf("%w: URL scheme %q is not ws or wss", ErrInvalidDialer, d.URL.Scheme)
	}
	if d.URL.Hostname() == "" {
		return nil, fmt.Errorf("%w: URL without a host", ErrInvalidDialer)
	}
	if d.URL.User != nil {
		return nil, fmt.Errorf("%w: URL with a user name or password", ErrInvalidDialer)
	}
	header := http.Header{}
	for name, values := range d.Header {
		if !validField(name, values) {
			return nil, fmt.Errorf("%w: header %q", ErrInvalidDialer, name)
		}
		name = http.CanonicalHeaderKey(name) // whatever the spelling, it goes out
		if name == "Origin" || name == "Connection" || name == "Upgrade" ||
			strings.HasPrefix(name, "Sec-Websocket-") || strings.HasPrefix(name, "Culvert-") {
			return nil, fmt.Errorf("%w: header %q is not the caller's to set", ErrInvalidDialer, name)
		}
		header[name] = append(header[name], values...)
	}
	if d.Credential != nil {
		token, err := d.Credential()
		if err != nil {
			return nil, fmt.Errorf("credential: %w", err)
		}
		if token != "" {
			if !validToken(token) {
				return nil, fmt.Errorf("%w: credential with a space, a character outside of ASCII or more than %d bytes",
					ErrInvalidDialer, maxToken)
			}
			header.Set("Authorization", "Bearer "+token)
		}
	}
	if d.guarded(header) && !loopbackHost(d.URL.Hostname()) {
		return nil, fmt.Errorf("%w: %q", ErrPlaintextCredential, d.URL.Hostname())
	}
	return header, nil
}

// guarded reports whether a request with header may go to loopback only.
func (d *Dialer) guarded(header http.Header) bool {
	return len(header["Authorization"]) > 0 && !d.secure() && !d.AllowPlaintext
}

func (d *Dialer) secure() bool { return d.URL.Scheme == "wss" || d.URL.Scheme == "https" }

// addr is the host and port of the URL.
func (d *Dialer) addr() string {
	if d.URL == nil {
		return ""
	}
	port := "80"
	if d.secure() {
		port = "443"
	}
	return net.JoinHostPort(d.URL.Hostname(), cmp.Or(d.URL.Port(), port))
}

// validField reports whether net/http would send the header field.
func validField(name string, values []string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	control := func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
	return name != "" && !slices.ContainsFunc(values, func(v string) bool { return strings.ContainsFunc(v, control) })
}

func loopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Dial connects, sends the upgrade request with hello and returns the carrier
// and the server's reply. hello has 1024 bytes at most. ctx and Timeout bound
// the dial, not the Conn. Every error is a [*DialError].
func (d *Dialer) Dial(ctx context.Context, hello []byte) (c *Conn, reply []byte, err error) {
	defer func() {
		if _, ok := errors.AsType[*DialError](err); err != nil && !ok {
			err = &DialError{Phase: PhaseSetup, Addr: d.addr(), Err: err}
		}
	}()
	header, err := d.request()
	if err != nil {
		return nil, nil, err
	}
	if len(hello) > maxHello {
		return nil, nil, fmt.Errorf("%w: hello of %d bytes", ErrInvalidDialer, len(hello))
	}
	proxy, err := d.proxy(header)
	if err != nil {
		return nil, nil, err
	}
	header.Set(helloHeader, encodeHello(hello))

	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(d.Timeout, defaultHandshakeTimeout),
		fmt.Errorf("no answer in time: %w", context.DeadlineExceeded))
	defer cancel()

	k, err := d.connect(ctx, proxy, d.guarded(header))
	if err != nil {
		return nil, nil, err
	}
	handOver := func(context.Context, string, string) (net.Conn, error) { return k, nil }
	transport := &http.Transport{
		DialContext:            handOver,
		DialTLSContext:         handOver,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHeader,
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)

	var pinged func(context.Context, []byte) bool // set before anything is read
	target := *d.URL
	target.Path = cmp.Or(target.Path, "/")
	target.Fragment = ""
	ws, resp, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{ //nolint:bodyclose // Dial closes it
		HTTPClient: &http.Client{
			Transport:     checked{transport, func(h http.Header) (err error) { reply, err = checkReply(h); return err }},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:     header,
		Host:           header.Get("Host"), // net/http leaves that of the header out
		Subprotocols:   []string{Subprotocol},
		OnPingReceived: func(ctx context.Context, p []byte) bool { return pinged(ctx, p) },
	})
	if err != nil {
		k.closeSocket()
		phase := PhaseUpgrade
		if errors.Is(err, errReply) {
			phase = PhaseHello
		}
		return nil, nil, &DialError{phase, d.addr(), upgradeFailed(ctx, k, header, resp, err)}
	}
	c = newConn(k, d.Options, d.secure())
	if proxy != nil {
		c.proxy = proxy.addr
	}
	pinged = c.pinged
	c.start(ws)
	return c, reply, nil
}

// connect makes the connection that the WebSocket is to run on.
// A guarded one ends at loopback.
func (d *Dialer) connect(ctx context.Context, proxy *forwardProxy, guarded bool) (*cork, error) {
	var conn net.Conn
	var err error
	if proxy != nil {
		if conn, err = proxy.tunnel(ctx, d.addr()); err != nil {
			return nil, &DialError{PhaseProxy, proxy.addr, because(ctx, err)}
		}
	} else if conn, err = d.straight(ctx, guarded); err != nil {
		return nil, err
	}
	if !d.secure() {
		return newCork(conn, true), nil
	}
	secured := tls.Client(conn, d.tlsConfig())
	if err := secured.HandshakeContext(ctx); err != nil {
		socketOf(conn).Close()
		if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			err = fmt.Errorf("%w: it answers %q, which is not TLS", ErrNotCulvert, record.RecordHeader[:])
		}
		return nil, &DialError{PhaseTLS, d.addr(), because(ctx, err)}
	}
	return newCork(secured, true), nil
}

// straight connects to the server itself.
func (d *Dialer) straight(ctx context.Context, guarded bool) (*wire, error) {
	conn, err := d.netDial()(ctx, "tcp", d.addr())
	if err != nil {
		phase := PhaseConnect
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			phase = PhaseResolve
		}
		return nil, &DialError{phase, d.addr(), because(ctx, err)}
	}
	// "localhost" is a name, and names can mean anything.
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && guarded && !tcp.IP.IsLoopback() {
		conn.Close()
		return nil, &DialError{PhaseConnect, d.addr(), fmt.Errorf("%w: %s", ErrPlaintextCredential, tcp)}
	}
	return newWire(conn), nil
}

func (d *Dialer) netDial() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.NetDial != nil {
		return d.NetDial
	}
	return new(net.Dialer).DialContext
}

func (d *Dialer) tlsConfig() *tls.Config {
	cfg := d.TLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg.ServerName = cmp.Or(cfg.ServerName, d.URL.Hostname())
	return hardenTLS(cfg)
}

// hardenTLS changes cfg, of either end, to what carriers need.
func hardenTLS(cfg *tls.Config) *tls.Config {
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{"http/1.1"}
	cfg.DynamicRecordSizingDisabled = true // many small records otherwise
	return cfg
}

// because adds to err the reason why ctx ended, if it is that.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// upgradeFailed makes of an error of websocket.Dial one that says what answered.
// header is that of the request; resp is nil if nothing answered, or no HTTP.
func upgradeFailed(ctx context.Context, k *cork, header http.Header, resp *http.Response, err error) error {
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		secret := header.Get("Authorization")
		if _, after, ok := strings.Cut(secret, " "); ok { // the scheme is none
			secret = after
		}
		return refused(resp, secrets{strings.TrimSpace(secret)})
	}
	if resp != nil {
		return fmt.Errorf("%w: it answers 101, but: %w", ErrNotCulvert, err)
	}
	if answer := k.answered(); len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/")) {
		return fmt.Errorf("%w: it answers %q, which is not HTTP", ErrNotCulvert, answer)
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	err = because(ctx, err)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("connection closed without an answer: %w", err)
	}
	return err
}

// refused makes an error of resp, and keeps out of it what was sent and is secret:
// a server may say it back.
func refused(resp *http.Response, sent secrets) *RefusedError {
	e := &RefusedError{
		Status:   resp.StatusCode,
		Token:    sent.hide(resp.Header.Get(refusalHeader)),
		Location: sent.hide(resp.Header.Get("Location")),
		Server:   sent.hide(resp.Header.Get("Server")),
	}
	if resp.Body != nil { // the WebSocket library has read the beginning and closed it
		body, _ := io.ReadAll(resp.Body)
		hide := sent.hide
		if len(body) >= bodyRead {
			hide = sent.hideCut
		}
		text := strings.TrimSpace(hide(string(body)))
		e.Body = text[:min(len(text), maxRefusalBody)]
	}
	return e
}

// checked looks at an answer 101 before the WebSocket library does, which would
// wait seconds for the body of one that is not as it should be.
type checked struct {
	http.RoundTripper
	check func(http.Header) error
}

func (t checked) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, err
	}
	if err := t.check(resp.Header); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

var errReply = fmt.Errorf("%w: it answers 101", ErrNotCulvert)

// checkReply checks what of the answer 101 is ours, and returns the hello.
func checkReply(h http.Header) ([]byte, error) {
	if h.Get("Sec-WebSocket-Protocol") != Subprotocol {
		return nil, fmt.Errorf("%w, but not for %s", errReply, Subprotocol)
	}
	reply, err := decodeHello(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errReply, err)
	}
	return reply, nil
}
