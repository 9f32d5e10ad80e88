package config

import (
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"

	"culvert/auth/hostname"
)

// Client is the configuration of culvert-client.
type Client struct {
	Servers     []*url.URL // not empty; scheme ws, wss, http or https, no userinfo; the path is never empty
	ServerOrder string     // "in-order" or "random"
	DialAddress string     // host:port, "" for that of the one server's URL
	Path        string     // as configured; Servers have it
	Carrier     string     // auto, websocket or http
	Header      map[string][]string
	HeaderFile  string // file

	// The credential: a token or a user with a password, each in one of several ways,
	// or nothing.
	Token        Secret
	TokenFile    string
	TokenCommand string // for the shell
	User         string
	Password     Secret
	PasswordFile string

	// FrontUser and its password are for a reverse proxy in front of the server.
	FrontUser         string // "": none
	FrontPasswordFile string // or FrontPassword
	FrontPassword     Secret

	// Proxy returns the forward proxy to a server, nil for none, from the option
	// and the environment. The server's scheme is http or https; nil: no proxy.
	Proxy func(server *url.URL) (*url.URL, error)
	proxy Secret // the option

	Seal         bool
	KeyFile      string // "": none
	ServerKey    string // culvert-key BASE64, "": as in KnownServers
	KnownServers string // file; "": the default

	AllowPlaintext        bool
	TLSCA                 string // file
	TLSCert               string // file; set when TLSKey is
	TLSKey                string // file
	TLSServerName         string
	TLSMinVersion         string   // "1.2" or "1.3"
	TLSPins               []string // "sha256/" and 32 bytes in base64
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
		{Name: "server", Placeholder: "URL", target: &c.Servers,
			Help: "the server, ws://HOST[:PORT] or wss://HOST[:PORT] (repeatable: the others are for when one fails)"},
		{Name: "server-order", Default: "in-order", choices: []string{"in-order", "random"}, target: &c.ServerOrder,
			Help: "which of several servers is tried first"},
		{Name: "dial-address", Placeholder: "HOST:PORT", check: checkDial, target: &c.DialAddress,
			Help: "connect to this address instead of the URL's host and port, which the request and the certificate still name"},
		{Name: "path", Placeholder: "PATH", Default: "/", check: checkPath, target: &c.Path,
			Help: "path of the upgrade request"},
		{Name: "carrier", Default: "auto", choices: []string{"auto", "websocket", "http"}, target: &c.Carrier,
			Help: "how to pass what is between: a WebSocket, plain HTTP requests, or whichever works"},
		{Name: "header", target: &c.Header,
			Help: "additional request header, Host too (repeatable; one a line in the environment)"},
		{Name: "header-file", Placeholder: "FILE", file: always, target: &c.HeaderFile,
			Help: "file with additional request headers, NAME: VALUE, one a line, read again at each dial"},
		{Name: "token-file", Placeholder: "FILE", file: always, target: &c.TokenFile,
			Help: "file with the token, read again at each dial"},
		{Name: "token", Placeholder: "TOKEN", target: &c.Token,
			Help: "the token itself; on the command line everybody on the machine can see it"},
		{Name: "token-command", Placeholder: "COMMAND", target: &c.TokenCommand,
			Help: "command that prints the token as its first line, run by the shell at each dial, for 30 s at most"},
		{Name: "user", Placeholder: "NAME", check: checkUser, target: &c.User,
			Help: "log in with a user and a password instead of a token"},
		{Name: "password-file", Placeholder: "FILE", file: always, target: &c.PasswordFile,
			Help: "file with the user's password, read again at each dial"},
		{Name: "password", Placeholder: "PASSWORD", target: &c.Password,
			Help: "the password itself; on the command line everybody on the machine can see it"},
		{Name: "front-user", Placeholder: "NAME", check: checkUser, target: &c.FrontUser,
			Help: "user name for a reverse proxy in front of the server that asks for one (Basic); also as wss://NAME@HOST"},
		{Name: "front-password-file", Placeholder: "FILE", file: always, target: &c.FrontPasswordFile,
			Help: "file with the password of --front-user, read again at each dial"},
		{Name: "front-password", Placeholder: "PASSWORD", target: &c.FrontPassword,
			Help: "the password of --front-user itself; on the command line everybody on the machine can see it"},
		{Name: "proxy", Placeholder: "URL", check: checkProxy, target: &c.proxy,
			Help: "forward proxy, http://, https:// or socks5://[USER:PASSWORD@]HOST[:PORT], or none; by default the environment says (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY)"},
		{Name: "seal", target: &c.Seal,
			Help: "seal everything for the server, the credential too, so that nobody in between can read or change it; also over ws://"},
		{Name: "key-file", Placeholder: "FILE", file: always, target: &c.KeyFile,
			Help: "file with the client's private key (see keygen), which is its credential then; seals; read again at each dial"},
		{Name: "server-key", Placeholder: "KEY", check: checkKey, target: &c.ServerKey,
			Help: "public key of the server, culvert-key BASE64, to seal for; seals (by default it is looked up in --known-servers)"},
		{Name: "known-servers", Placeholder: "FILE", file: always, target: &c.KnownServers,
			Help: "file with the public keys of servers, HOST:PORT KEY, one a line (culvert/known_servers in the user's configuration unless given)"},
		{Name: "allow-plaintext", target: &c.AllowPlaintext,
			Help: "send the credential over ws:// to other hosts than loopback"},
		{Name: "tls-ca", Placeholder: "FILE", file: always, target: &c.TLSCA,
			Help: "PEM file of authorities to trust beside the system's"},
		{Name: "tls-cert", Placeholder: "FILE", file: always, target: &c.TLSCert,
			Help: "PEM file with the client's certificate, for a server that asks for one; read again at each dial"},
		{Name: "tls-key", Placeholder: "FILE", file: always, target: &c.TLSKey,
			Help: "PEM file with the private key of the client's certificate; read again at each dial"},
		{Name: "tls-server-name", Placeholder: "NAME", check: checkName, target: &c.TLSServerName,
			Help: "name that the server's certificate must have, instead of the URL's host"},
		{Name: "tls-min-version", Default: "1.2", choices: []string{"1.2", "1.3"}, target: &c.TLSMinVersion,
			Help: "oldest version of TLS to speak"},
		{Name: "tls-pin", Placeholder: "sha256/BASE64", check: checkPin, target: &c.TLSPins,
			Help: "public key that the server or an authority above it must have (repeatable: one of them)"},
		{Name: "tls-insecure-skip-verify", target: &c.TLSInsecureSkipVerify,
			Help: "accept any certificate: whoever is in the way reads and changes everything"},
		{Name: "local", Short: "L", target: &c.Local, Live: true,
			Help: "listen here, dial from the server; PORT:PORT and PORT mean localhost there (repeatable; port 0: any free one)"},
		{Name: "remote", Short: "R", target: &c.Remote, Live: true,
			Help: "listen at the server, dial from here; PORT:PORT and PORT mean localhost here (repeatable; port 0: any free one)"},
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
		{Name: "state-file", Placeholder: "FILE", file: unless("none"), target: &c.StateFile,
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
	l.checkCredential(c)
	l.checkFrontUser(c)
	l.checkHeartbeat(c)

	if len(c.Servers) == 0 {
		l.missing("server")
	} else {
		l.checkServers(c)
	}
	c.TLSServerName, _ = hostname.ASCII(c.TLSServerName) // which was checked
	if host, port, err := parseHostPort(c.DialAddress, 1); err == nil {
		c.DialAddress = joinHostPort(host, port)
	}
	l.checkKeyPair(c.TLSCert, c.TLSKey)
	l.checkForwards("local", c.Local)
	l.checkForwards("remote", c.Remote)
	l.checkProxy(c, src)
	l.checkToken(&c.Settings)
	return c, l.warnings, l.problems.Err()
}

// checkCredential lets a client log in in one way: the one from the stronger source
// counts. A user comes with a password.
func (l *loader) checkCredential(c *Client) {
	l.exclusive("password-file", "password")
	named := l.given("user")
	l.exclusive("key-file", "token-file", "token", "token-command", "user")
	for _, name := range []string{"password-file", "password"} {
		if l.given(name) && !named && !l.failed("user") {
			l.problem(name, 0, "give --user NAME too", "needs a user")
		}
	}
	if l.given("user") && !l.given("password-file") && !l.given("password") && !l.failed("password-file", "password") {
		l.problem("user", 0, "give --password-file FILE or CULVERT_PASSWORD too", "needs a password")
	}
	if l.given("password") {
		l.checkSecret(&c.Settings, "password", "the password", "--password-file or CULVERT_PASSWORD")
	}
}

// checkFrontUser takes what stands before the @ of a server's URL as --front-user, and its
// password as --front-password. The URLs keep neither.
func (l *loader) checkFrontUser(c *Client) {
	fromURL := false
	for i, server := range c.Servers {
		user := server.User
		if server.User = nil; user == nil {
			continue
		}
		if len(c.Servers) > 1 { // nobody else may get it
			l.problem("server", i, "give --front-user, which goes to every server, or one server",
				"has a user name before the @, and there are several servers")
			return
		}
		password, given := user.Password()
		if strings.Contains(user.Username(), ":") || strings.ContainsFunc(user.Username()+password, unicode.IsControl) {
			l.problem("server", i, "give --front-user and --front-password-file", "has a colon in the user name, or a control character, before the @")
			return
		}
		named := c.FrontUser != "" && c.FrontUser != user.Username()
		other := given && !c.FrontPassword.Empty() && c.FrontPassword.Reveal() != password
		if named || other {
			l.problem("server", i, "give it once", "has a user name or a password before the @, and there is another one")
			return
		}
		c.FrontUser, fromURL = user.Username(), true
		if given && c.FrontPasswordFile != "" {
			l.problem("server", i, "give one of the two", "has a password before the @, and there is --front-password-file")
			return
		}
		if given {
			c.FrontPassword = NewSecret(password)
			l.checkSecret(&c.Settings, "server", "the password in the server's URL", "--front-user and --front-password-file")
		}
	}
	l.exclusive("front-password-file", "front-password")
	has := c.FrontPasswordFile != "" || !c.FrontPassword.Empty()
	switch {
	case c.FrontUser == "" && has && !l.failed("front-user"):
		name := "front-password"
		if c.FrontPasswordFile != "" {
			name = "front-password-file"
		}
		l.problem(name, 0, "give --front-user NAME too", "needs a user")
	case c.FrontUser != "" && !has && !l.failed("front-password-file", "front-password"):
		name := "front-user"
		if fromURL {
			name = "server"
		}
		l.problem(name, 0, "give --front-password-file FILE or CULVERT_FRONT_PASSWORD too", "needs a password for the user before the server")
	}
	if l.given("front-password") {
		l.checkSecret(&c.Settings, "front-password", "the front's password", "--front-password-file or CULVERT_FRONT_PASSWORD")
	}
}

// Sealed says whether links are to be sealed.
func (c *Client) Sealed() bool { return c.Seal || c.KeyFile != "" || c.ServerKey != "" }

// checkHeartbeat reports bounds between which the heartbeat is not. A bound that
// was not given gives way.
func (l *loader) checkHeartbeat(c *Client) {
	if l.given("heartbeat-min") && c.HeartbeatMin > c.Heartbeat {
		l.problem("heartbeat-min", 0, "give at most --heartbeat", "%v is more than the heartbeat to begin with (%v)", c.HeartbeatMin, c.Heartbeat)
	}
	if l.given("heartbeat-max") && c.HeartbeatMax < c.Heartbeat {
		l.problem("heartbeat-max", 0, "give at least --heartbeat", "%v is less than the heartbeat to begin with (%v)", c.HeartbeatMax, c.Heartbeat)
	}
}

// checkServers settles the paths of the servers' URLs and what depends on their
// schemes.
func (l *loader) checkServers(c *Client) {
	secure, exposed := 0, 0
	for i, server := range c.Servers {
		switch {
		case server.Path == "" || server.Path == "/":
			server.Path = c.Path
		case l.given("path") && c.Path != server.Path:
			l.problem("path", 0, "give the path once", "%q differs from the path in the server's URL, %q", c.Path, server.Path)
		}
		for j, other := range c.Servers[:i] {
			if *server == *other {
				l.problem("server", i, "leave one of them out", "is given twice (%s)", l.origin("server", j))
			}
		}
		if server.Scheme == "wss" || server.Scheme == "https" {
			secure++
		} else if !loopbackHost(server.Hostname()) {
			exposed++
		}
	}
	if c.DialAddress != "" && len(c.Servers) > 1 {
		l.problem("dial-address", 0, "give one server, or leave it out", "stands for the address of one server, and there are %d", len(c.Servers))
	}
	if l.given("known-servers") && !c.Sealed() {
		l.problem("known-servers", 0, "give --seal too, or leave it out", "means nothing without --seal")
	}
	open := !c.Sealed() && (!c.Token.Empty() || c.TokenFile+c.TokenCommand+c.User != "") // the credential for the server
	if c.AllowPlaintext && exposed > 0 && (open || c.HeaderFile+c.FrontUser != "") {
		l.warn("the credential is sent in plain text (allow-plaintext): whoever is in the way can read it; use wss://")
	}
	if secure > 0 {
		if c.TLSInsecureSkipVerify {
			l.warn("the server's certificate is NOT verified (tls-insecure-skip-verify): whoever is in the way can read and change everything")
		}
		return
	}
	for _, name := range []string{"tls-ca", "tls-cert", "tls-key", "tls-server-name", "tls-min-version", "tls-pin"} {
		if l.given(name) {
			l.problem(name, 0, "use wss:// in the server's URL or leave it out", "means nothing over %s://", c.Servers[0].Scheme)
		}
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
