package config

import (
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Client is the configuration of culvert-client.
type Client struct {
	Server    *url.URL // scheme ws, wss, http or https, no userinfo; the path is never empty
	Path      string   // as configured; Server has it
	Header    map[string][]string
	Token     Secret // empty when TokenFile is set
	TokenFile string // "" when Token is set

	// Proxy returns the forward proxy to a server, nil for none, from the option
	// and the environment. The server's scheme is http or https; nil: no proxy.
	Proxy func(server *url.URL) (*url.URL, error)
	proxy Secret // the option

	AllowPlaintext        bool
	TLSCA                 string // file
	TLSServerName         string
	TLSInsecureSkipVerify bool

	Local, Remote []Forward
	RetryInitial  bool
	MaxBackoff    time.Duration

	HeartbeatMin  time.Duration
	HeartbeatMax  time.Duration // 0: as Heartbeat
	MaxCarrierAge time.Duration // 0: as learned
	StateFile     string        // "": the default, "none": none

	Settings
}

// ClientOptions is the table of culvert-client's options.
func ClientOptions() []Option { return new(Client).options() }

func (c *Client) options() []Option {
	return append([]Option{
		c.fileOption(),
		{Name: "server", Placeholder: "URL", target: &c.Server,
			Help: "the server, ws://HOST[:PORT] or wss://HOST[:PORT]"},
		{Name: "path", Placeholder: "PATH", Default: "/", check: checkPath, target: &c.Path,
			Help: "path of the upgrade request"},
		{Name: "header", target: &c.Header,
			Help: "additional request header (repeatable; one a line in the environment)"},
		{Name: "token-file", Placeholder: "FILE", target: &c.TokenFile,
			Help: "file with the token, read again at each dial"},
		{Name: "token", Placeholder: "TOKEN", target: &c.Token,
			Help: "the token itself; on the command line everybody on the machine can see it"},
		{Name: "proxy", Placeholder: "URL", check: checkProxy, target: &c.proxy,
			Help: "forward proxy, http://, https:// or socks5://[USER:PASSWORD@]HOST[:PORT], or none; by default the environment says (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY)"},
		{Name: "allow-plaintext", target: &c.AllowPlaintext,
			Help: "send the token over ws:// to other hosts than loopback"},
		{Name: "tls-ca", Placeholder: "FILE", target: &c.TLSCA,
			Help: "PEM file of authorities to trust instead of the system's"},
		{Name: "tls-server-name", Placeholder: "NAME", target: &c.TLSServerName,
			Help: "name that the server's certificate must have, instead of the URL's host"},
		{Name: "tls-insecure-skip-verify", target: &c.TLSInsecureSkipVerify,
			Help: "accept any certificate: whoever is in the way reads and changes everything"},
		{Name: "local", Short: "L", target: &c.Local,
			Help: "listen here, dial from the server (repeatable; port 0: any free one)"},
		{Name: "remote", Short: "R", target: &c.Remote,
			Help: "listen at the server, dial from here (repeatable; port 0: any free one)"},
		{Name: "retry-initial", target: &c.RetryInitial,
			Help: "keep trying when the first attempt fails, whatever the reason"},
		{Name: "max-backoff", Default: "30s", min: int64(100 * time.Millisecond), max: int64(24 * time.Hour), target: &c.MaxBackoff,
			Help: "longest pause between attempts to connect"},
		{Name: "heartbeat-min", Default: "1s", min: int64(10 * time.Millisecond), max: int64(time.Hour), target: &c.HeartbeatMin,
			Help: "shortest interval of pings, where WebSockets that are idle for longer are found to be cut"},
		{Name: "heartbeat-max", min: int64(10 * time.Millisecond), max: int64(time.Hour), target: &c.HeartbeatMax,
			Help: "longest interval of pings, tried where idle WebSockets last (that of --heartbeat unless given)"},
		{Name: "max-carrier-age", Default: "0s", min: 0, max: int64(365 * 24 * time.Hour), target: &c.MaxCarrierAge,
			Help: "age at which the WebSocket is replaced by a fresh one (0: before the age at which it is found to be cut)"},
		{Name: "state-file", Placeholder: "FILE", target: &c.StateFile,
			Help: "keeps what is found about the way to the server; none for none (culvert/paths.json among the user's caches unless given)"},
	}, c.Settings.options()...)
}

// LoadClient reads, merges and checks the configuration of culvert-client. The
// warnings are about what works and should not stay so. An error is always of
// type [Problems].
func LoadClient(src Sources) (c *Client, warnings []string, err error) {
	c = new(Client)
	l := load(c.options(), src)
	l.checkSettings(&c.Settings)
	l.exclusive("token-file", "token")
	l.checkHeartbeat(c)

	if c.Server == nil {
		l.missing("server")
	} else {
		l.checkServer(c)
	}
	l.checkForwards("local", c.Local)
	l.checkForwards("remote", c.Remote)
	if len(c.Local)+len(c.Remote) == 0 {
		l.warn("there is no forward, so nothing can use this tunnel; give -L or -R")
	}
	l.checkProxy(c, src.LookupEnv)
	l.checkToken(&c.Settings)
	return c, l.warnings, l.problems.err()
}

// checkHeartbeat reports bounds between which the heartbeat is not. A bound that
// was not given gives way.
func (l *loader) checkHeartbeat(c *Client) {
	if l.given("heartbeat-min") && c.HeartbeatMin > c.Heartbeat {
		l.problem("heartbeat-min", 0, "give at most heartbeat", "%v is more than the heartbeat to begin with (%v)", c.HeartbeatMin, c.Heartbeat)
	}
	if l.given("heartbeat-max") && c.HeartbeatMax < c.Heartbeat {
		l.problem("heartbeat-max", 0, "give at least heartbeat", "%v is less than the heartbeat to begin with (%v)", c.HeartbeatMax, c.Heartbeat)
	}
}

// checkServer settles the path of the server's URL and what depends on its scheme.
func (l *loader) checkServer(c *Client) {
	switch {
	case c.Server.Path == "" || c.Server.Path == "/":
		c.Server.Path = c.Path
	case l.given("path") && c.Path != c.Server.Path:
		l.problem("path", 0, "give the path once", "%q differs from the path in the server's URL, %q", c.Path, c.Server.Path)
	default:
		c.Path = c.Server.Path
	}

	if c.Server.Scheme == "wss" || c.Server.Scheme == "https" {
		if c.TLSInsecureSkipVerify {
			l.warn("the server's certificate is NOT verified (tls-insecure-skip-verify): whoever is in the way can read and change everything")
		}
		return
	}
	for _, name := range []string{"tls-ca", "tls-server-name"} {
		if l.given(name) {
			l.problem(name, 0, "use wss:// in the server's URL or leave it out", "means nothing over %s://", c.Server.Scheme)
		}
	}
	if c.AllowPlaintext && !loopbackHost(c.Server.Hostname()) && (!c.Token.Empty() || c.TokenFile != "") {
		l.warn("the token is sent in plain text (allow-plaintext): whoever is in the way can read it; use wss://")
	}
}

// loopbackHost reports whether host is this machine without asking a resolver.
func loopbackHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// checkForwards reports forwards that would listen on the same address.
func (l *loader) checkForwards(name string, forwards []Forward) {
	for i, f := range forwards {
		for j, other := range forwards[:i] {
			if f.collides(other) {
				l.problem(name, i, "use another port or address for one of them",
					"listens on %s like %s (%s)", f.address(), other, l.origin(name, j))
				break
			}
		}
	}
}
