package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"culvert/mux/carrier/eyeballs"
)

const (
	maxRefusalBody    = 200
	bodyRead          = 1024 // by the WebSocket library, of an answer that is not 101
	maxResponseHeader = 16 << 10
	maxRedirects      = 5
	minSecret         = 4 // bytes; what is shorter can be guessed, and stands in ordinary words
)

// Dialer makes carriers as a client. It is not changed by its methods, which may
// be called concurrently.
type Dialer struct {
	// URL is where the server is: ws or wss, or http or https for the same; the
	// path is "/" if empty. It holds no user name and no password.
	URL *url.URL

	// Address is dialled instead of the host and port of the URL, which stay those
	// of the request and of the certificate. "host:port"; "" means none.
	Address string

	// Header is sent with the request, Host included. It may not hold what the
	// upgrade itself needs, nor an Origin, which a server takes for a browser's. An
	// Authorization in it or in SecretHeader is for somebody in front of the server, such
	// as a reverse proxy; Credential then travels in another header.
	Header http.Header

	// SecretHeader returns what is sent beside Header and is asked at every Dial.
	// Its values are kept like a credential: they go unencrypted to loopback only,
	// and errors do not repeat them. Nil means none.
	SecretHeader func() (http.Header, error)

	// Cookies keeps what the server sets, for the next Dial. Nil keeps nothing.
	Cookies *Cookies

	// Credential returns the bearer token, or what [Basic] makes of a user and a
	// password, and is asked at every Dial. Nil or "" means none.
	Credential func() (string, error)

	// Seal says how carriers are sealed, and is asked at every Dial. Then Credential
	// goes to nobody but the server. Nil: they are not.
	Seal func() (Seal, error)

	// AllowPlaintext permits a credential over ws to a host that is not loopback.
	AllowPlaintext bool

	// TLS is used for wss, as a clone. The least version is 1.2 in any case, and
	// the server's name is that of the URL unless given. With a ClientSessionCache the
	// next Dial resumes the TLS session, in a round trip less; a Dial that fails empties
	// it of the server's, so that the next one shows its certificate anew. Nil means the
	// defaults.
	TLS *tls.Config

	// Pins are the public keys that the server may have: that of its certificate
	// or, if the certificate is verified, of an authority in its chain. They are
	// checked even where TLS does not verify. None means any.
	Pins []Pin

	// Timeout bounds the whole of a Dial, or each of the attempts that it makes
	// where an upgrade or a tunnel is refused. Default 10 s.
	Timeout time.Duration

	// Mode says how carriers are made. Default ModeWebSocket.
	Mode Mode

	// Ladder is what Dials in ModeAuto remember of the way to the server. It may be
	// shared by copies of the Dialer. Nil: nothing is remembered.
	Ladder *Ladder

	// Proxy returns the forward proxy to the server at the URL it is given, whose
	// scheme is http or https, or nil for none: http, https (verified with TLS's
	// RootCAs against the proxy's name), socks5 or socks5h, the port 80, 443 or
	// 1080 unless given, with a user name and a password where the proxy wants
	// them. The server's name is the proxy's to resolve. It is asked at every Dial.
	// Nil means none.
	Proxy func(server *url.URL) (*url.URL, error)

	// MaxHeartbeat is the longest that Conn.SetHeartbeat may be given, if that is
	// more than Options.Heartbeat: the server is asked to be as quiet.
	MaxHeartbeat time.Duration

	// NetDial makes the connection, to the proxy if there is one, TLS not
	// included. Nil means TCP straight to the address; the addresses of a name are tried
	// one after the other, each a little later than the one before (RFC 8305).
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Addresses remembers which address of a name has worked, for the next Dial. It may
	// be shared. Nil: nothing is remembered.
	Addresses *eyeballs.Memory

	// Slow is told what a Dial is waiting for when it has taken 3 s, and when it is
	// waiting for something else after 3 s more. It must not block. Nil: nobody is told.
	Slow func(waitingFor string, after time.Duration)

	Options

	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error) // nil: the system's resolver
}

// Validate reports what makes every Dial fail before it touches the network:
// [ErrInvalidDialer], [ErrPlaintextCredential], or an error of Credential or
// SecretHeader or Proxy, which it calls.
func (d *Dialer) Validate() error {
	_, err := d.request(nil)
	return err
}

func (d *Dialer) secure() bool { return d.URL.Scheme == "wss" || d.URL.Scheme == "https" }

// addr is the host and port to dial.
func (d *Dialer) addr() string {
	if d.Address != "" || d.URL == nil {
		return d.Address
	}
	port := "80"
	if d.secure() {
		port = "443"
	}
	return net.JoinHostPort(d.URL.Hostname(), cmp.Or(d.URL.Port(), port))
}

// Dial connects, sends the upgrade request with hello and returns the carrier
// and the server's reply. Redirects within the origin of the URL are followed, five
// at most, each on a new connection to the same address. hello has 1024 bytes at
// most. ctx and Timeout bound the dial, not the Conn. Every error is a
// [*DialError].
func (d *Dialer) Dial(ctx context.Context, hello []byte) (c *Conn, reply []byte, err error) {
	defer func() {
		if _, ok := errors.AsType[*DialError](err); err != nil && !ok {
			err = &DialError{Phase: PhaseSetup, Addr: d.addr(), Err: err}
		}
	}()
	progress := newProgress(d.Slow)
	defer progress.stop()
	r, err := d.request(progress)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			r.tickets.forget(d.serverName())
		}
	}()
	if len(hello) > maxHello {
		return nil, nil, fmt.Errorf("%w: hello of %d bytes", ErrInvalidDialer, len(hello))
	}
	r.hello = hello
	if d.Seal != nil {
		s, sealErr := d.Seal()
		if sealErr != nil {
			return nil, nil, fmt.Errorf("seal: %w", sealErr)
		}
		r.seal = &s
		defer func() { err = d.explain(ctx, r, err) }()
	}
	if longest := max(d.Heartbeat, d.MaxHeartbeat); longest > defaultHeartbeat {
		r.header.Set(heartbeatHeader, encodeHeartbeat(longest))
	}
	switch d.Mode {
	case ModeAuto:
		c, reply, err = d.climb(ctx, r)
	case ModeHTTP:
		c, reply, err = d.dialPipe(ctx, r)
	default:
		c, reply, err = d.dialOver(ctx, ModeWebSocket, r, 0)
	}
	if err != nil {
		err = d.checkScheme(ctx, r, err)
	}
	return c, reply, err
}

// dialOver makes a carrier in one of the ways. The answer to the upgrade may take
// patience, if that is not 0.
func (d *Dialer) dialOver(ctx context.Context, mode Mode, r *request, patience time.Duration) (*Conn, []byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout(), errNoAnswer)
	defer cancel()

	target := *d.URL
	target.Path = cmp.Or(target.Path, "/")
	target.Fragment = ""
	for redirects := 0; ; redirects++ {
		c, reply, location, err := d.upgrade(ctx, mode, &target, r, patience)
		if err == nil {
			return c, reply, nil
		}
		if redirects < maxRedirects && redirect(&target, r.site(&target), location) {
			continue
		}
		if mode == ModeHTTP && errors.Is(err, errNoAnswer) { // it may have begun in a way that passes no more
			d.Ladder.unlearn()
		}
		if e, ok := errors.AsType[*DialError](err); ok && redirects > 0 {
			e.Err = fmt.Errorf("after %d redirects: %w", redirects, e.Err)
		}
		return nil, nil, err
	}
}

// upgrade makes one request, on a connection or a pipe of its own. location is where
// the answer redirects to, if it does.
func (d *Dialer) upgrade(ctx context.Context, mode Mode, target *url.URL, r *request, patience time.Duration) (c *Conn, reply []byte, location string, err error) {
	header := r.header.Clone()
	sealing, err := r.sayHello(header)
	if err != nil {
		return nil, nil, "", err
	}
	var k *cork
	if mode == ModeHTTP {
		k, err = d.connectPipe(target, r)
	} else {
		k, err = d.connect(ctx, r)
	}
	if err != nil {
		return nil, nil, "", err
	}
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, patience, errNoAnswer)
		defer cancel()
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

	d.Cookies.add(header, r.site(target))
	var pinged func(context.Context, []byte) bool // set before anything is read
	answer := &answer{over: transport, sealing: sealing}
	ws, resp, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{ //nolint:bodyclose // Dial closes it
		HTTPClient:     &http.Client{Transport: answer},
		HTTPHeader:     header,
		Host:           header.Get("Host"), // net/http leaves that of the header out
		Subprotocols:   []string{Subprotocol},
		OnPingReceived: func(ctx context.Context, p []byte) bool { return pinged(ctx, p) },
	})
	if resp != nil {
		resp.Header["Location"] = answer.location
		d.Cookies.keep(r.site(target), resp)
	}
	if err != nil {
		k.closeSocket()
		if why := pipeFailure(k); why != nil {
			return nil, nil, locationOf(why), d.pipeError(why)
		}
		phase := PhaseUpgrade
		switch remote, _ := errors.AsType[*net.OpError](err); {
		case errors.Is(err, errReply):
			phase = PhaseHello
		case remote != nil && remote.Op == "remote error": // an alert: in TLS 1.3 it may come after the handshake
			phase = PhaseTLS
		}
		return nil, nil, redirectOf(resp), &DialError{phase, d.addr(), upgradeFailed(ctx, k, r.secrets, resp, err)}
	}
	c = newConn(k, d.Options, d.secure())
	if r.proxy != nil {
		c.proxy = r.proxy.addr
	}
	if mode == ModeWebSocket && d.Mode == ModeAuto {
		c.spoke, c.ended = d.Ladder.speaks, d.Ladder.ended
	}
	pinged = c.pinged
	if sealing != nil {
		c.sealWith(answer.in, answer.out)
	}
	c.start(ws)
	if sealing != nil {
		if err := c.confirm(ctx); err != nil {
			return nil, nil, "", &DialError{PhaseHello, d.addr(), err}
		}
		if refused := answer.refused; refused != nil { // and the server knows now whom it has refused
			_ = c.Close("")
			refused.Path, refused.Token, refused.Body = target.Path, r.secrets.hide(refused.Token), r.secrets.hide(refused.Body)
			return nil, nil, "", &DialError{PhaseUpgrade, d.addr(), refused}
		}
	}
	return c, answer.reply, "", nil
}

var errNoAnswer = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

func (d *Dialer) timeout() time.Duration { return cmp.Or(d.Timeout, defaultHandshakeTimeout) }

// dialTCP is Dialer.NetDial unless that is given.
func (d *Dialer) dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{ip}
	} else {
		lookup := d.lookup
		if lookup == nil {
			lookup = net.DefaultResolver.LookupNetIP
		}
		if addrs, err = lookup(ctx, "ip", host); err != nil {
			return nil, err
		}
	}
	addrs = eyeballs.Order(addrs, d.Addresses.Last(host))
	conn, winner, errs := eyeballs.Race(ctx, len(addrs), func(ctx context.Context, i int) (net.Conn, error) {
		var dialer net.Dialer //nolint:forbidigo // the way to the server, not a stream's
		return dialer.DialContext(ctx, network, net.JoinHostPort(addrs[i].String(), port))
	})
	if conn == nil {
		return nil, errs[0]
	}
	d.Addresses.Worked(host, addrs[winner])
	return conn, nil
}

// connect makes the connection that the WebSocket is to run on.
func (d *Dialer) connect(ctx context.Context, r *request) (*cork, error) {
	conn, err := d.dialServer(ctx, r)
	if err != nil {
		return nil, err
	}
	return newCork(conn, true), nil
}

// dialServer connects to the server, a *wire or TLS over one, or another conn with
// one below it. For a guarded request it ends at loopback. Every error is a
// *DialError.
func (d *Dialer) dialServer(ctx context.Context, r *request) (conn net.Conn, err error) {
	if r.proxy != nil {
		if conn, err = r.proxy.tunnel(ctx, d.addr()); err != nil {
			return nil, &DialError{PhaseProxy, r.proxy.addr, because(ctx, err)}
		}
	} else if conn, err = d.straight(ctx, r); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			r.progress.waits("the answer of %s to an HTTP request", d.addr())
		}
	}()
	if !d.secure() {
		return conn, nil
	}
	r.progress.waits("the TLS handshake with %s", d.addr())
	cfg := d.tlsConfig()
	if r.tickets != nil {
		cfg.ClientSessionCache = r.tickets
	}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		socketOf(conn).Close()
		return nil, &DialError{PhaseTLS, d.addr(), because(ctx, tlsFailed(err, cfg, d.URL.Scheme, strings.TrimSuffix(d.URL.Scheme, "s"), ErrNotCulvert))}
	}
	return secured, nil
}

// straight connects to the server itself.
func (d *Dialer) straight(ctx context.Context, r *request) (*wire, error) {
	r.progress.waits("a TCP connection to %s", d.addr())
	conn, err := d.netDial()(ctx, "tcp", d.addr())
	if err != nil {
		phase := PhaseConnect
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			phase = PhaseResolve
		}
		return nil, &DialError{phase, d.addr(), because(ctx, err)}
	}
	// "localhost" is a name, and names can mean anything.
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && r.guarded && !tcp.IP.IsLoopback() {
		conn.Close()
		return nil, &DialError{PhaseConnect, d.addr(), fmt.Errorf("%w: %s", ErrPlaintextCredential, tcp)}
	}
	return newWire(conn), nil
}

func (d *Dialer) netDial() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.NetDial != nil {
		return d.NetDial
	}
	return d.dialTCP
}

// serverName is the one that the server's certificate must have.
func (d *Dialer) serverName() string {
	if d.TLS != nil && d.TLS.ServerName != "" {
		return d.TLS.ServerName
	}
	host := d.URL.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil { // a zone means something on this machine only
		return ip.WithZone("").String()
	}
	return host
}

func (d *Dialer) tlsConfig() *tls.Config {
	cfg := d.TLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg.ServerName = d.serverName()
	if verify := cfg.VerifyConnection; len(d.Pins) > 0 {
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			if verify != nil {
				if err := verify(state); err != nil {
					return err
				}
			}
			return checkPins(d.Pins, state)
		}
	}
	return HardenTLS(cfg)
}

// HardenTLS changes cfg, of either end, to what carriers need, and returns it. A Dialer
// and a Server do that with theirs; what a GetConfigForClient returns needs it too.
func HardenTLS(cfg *tls.Config) *tls.Config {
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{"http/1.1"}
	cfg.DynamicRecordSizingDisabled = true // many small records otherwise
	cfg.CipherSuites = cipherSuites()
	return cfg
}

// cipherSuites are those of TLS 1.2 that encrypt and authenticate in one step: all of the
// library's but CBC with HMAC, which attacks on padding go for. TLS 1.3 has no others.
func cipherSuites() []uint16 {
	var all []uint16
	for _, suite := range tls.CipherSuites() {
		if !strings.Contains(suite.Name, "_CBC_") {
			all = append(all, suite.ID)
		}
	}
	return all
}

// because adds to err the reason why ctx ended, if it is that.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}
