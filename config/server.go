package config

import (
	"net/netip"
	"net/url"

	"github.com/goccy/go-yaml/ast"
)

// Server is the configuration of culvert-server.
type Server struct {
	Listen         string // host:port; no host means all addresses
	Path           string
	Token          Secret // empty when TokenFile is set
	TokenFile      string // "" when Token is set
	Identities     []Identity
	IdentitiesDir  string // directory of files with more of them, which are in Identities; "" for none
	Issuers        []Issuer
	InsecureNoAuth bool   // there is no credential then
	TLSCert        string // file; set when TLSKey is
	TLSKey         string // file
	KeyFile        string // "": clients cannot seal
	ClientCA       string // file, "" for none
	CRL            string // file; ClientCA is set when this is
	ClientCert     string // "off", "optional" or "require"

	ACMEDomains   []string // none: no ACME; TLSCert is not set with them
	ACMEEmail     string
	ACMEDirectory string // URL, "" for Let's Encrypt
	ACMECache     string // directory, "" for the default
	ACMECA        string // file, "" for the system's authorities
	ACMEHTTP      string // host:port, "" for none

	Fallback       *url.URL // http or https, no path; nil for none
	Site           string   // directory, "" for none; not with Fallback
	Stealth        bool
	AllowOrigins   []string
	TrustedProxies []netip.Prefix

	fallback       string // the options
	trustedProxies []string

	GatewayPorts bool

	MaxSessions                  int
	MaxSessionsPerIdentity       int
	MaxUnauthenticated           int
	MaxUnauthenticatedPerAddress int
	MaxHeaderBytes               Size

	MaxOpensPerSecond      int  // of streams, all clients together; 0: no limit
	MaxUpload, MaxDownload Size // per second, all clients together; 0: no limit

	Audit        string // file of the audit log, "-" for stdout, "" for none
	AuditMaxSize Size
	AuditKeep    int

	Settings
}

// ServerOptions is the table of culvert-server's options.
func ServerOptions() []Option { return new(Server).options() }

func (s *Server) options() []Option {
	return append([]Option{
		s.fileOption(),
		{Name: "listen", Placeholder: "[HOST]:PORT", Default: "127.0.0.1:8080", check: checkListen, target: &s.Listen,
			Help: "address to listen on (no host: all addresses)"},
		{Name: "path", Placeholder: "PATH", Default: "/", check: checkPath, target: &s.Path,
			Help: "path of the upgrade request; all others are the site's, or not found"},
		{Name: "token-file", Placeholder: "FILE", file: always, target: &s.TokenFile, Live: true,
			Help: "file with the tokens of clients or their hashes, sha256:HASH LABEL, one a line"},
		{Name: "token", Placeholder: "TOKEN", target: &s.Token, Live: true,
			Help: "a client's token itself; on the command line everybody on the machine can see it"},
		{Name: "identities-dir", Placeholder: "DIR", file: always, target: &s.IdentitiesDir, Live: true,
			Help: "directory with files of identities, *.yaml, beside those in the configuration file"},
		{Name: "insecure-no-auth", target: &s.InsecureNoAuth, Live: true,
			Help: "let everybody in who can reach the server"},
		{Name: "tls-cert", Placeholder: "FILE", file: always, target: &s.TLSCert,
			Help: "PEM file with the certificate and its chain; without it the server speaks plain ws://"},
		{Name: "tls-key", Placeholder: "FILE", file: always, target: &s.TLSKey,
			Help: "PEM file with the certificate's private key"},
		{Name: "key-file", Placeholder: "FILE", file: always, target: &s.KeyFile,
			Help: "file with the server's private key (see keygen), for clients that seal; without it they are refused"},
		{Name: "client-ca", Placeholder: "FILE", file: always, target: &s.ClientCA,
			Help: "PEM file with the authorities of client certificates, which clients may show then"},
		{Name: "crl", Placeholder: "FILE", file: always, target: &s.CRL, Live: true,
			Help: "file with a revocation list (PEM or DER) of each of the client authorities; without one in force, an authority's certificates are refused"},
		{Name: "client-cert", choices: []string{"off", "optional", "require"}, target: &s.ClientCert,
			Help: "whether clients show a certificate (optional with --client-ca, off without)"},
		{Name: "acme-domain", Placeholder: "NAME", check: checkDomain, target: &s.ACMEDomains,
			Help: "get a certificate for this name by ACME, and so accept the authority's terms of service (repeatable)"},
		{Name: "acme-email", Placeholder: "ADDRESS", check: checkEmail, target: &s.ACMEEmail,
			Help: "address that the authority writes to about certificates"},
		{Name: "acme-cache", Placeholder: "DIR", file: always, target: &s.ACMECache,
			Help: "directory that keeps the account and the certificates ($STATE_DIRECTORY/acme, or culvert/acme among the user's caches, unless given)"},
		{Name: "acme-directory", Placeholder: "URL", check: checkHTTPS, target: &s.ACMEDirectory,
			Help: "the authority's directory (Let's Encrypt's unless given)"},
		{Name: "acme-ca", Placeholder: "FILE", file: always, target: &s.ACMECA,
			Help: "PEM file of authorities to trust beside the system's when asking at --acme-directory"},
		{Name: "acme-http", Placeholder: "[HOST]:PORT", check: checkListen, target: &s.ACMEHTTP,
			Help: "also listen here for the challenge HTTP-01, that the authority makes at port 80, and redirect the rest to https"},
		{Name: "site", Placeholder: "DIR", file: always, target: &s.Site,
			Help: "directory of a web site for everyone who is not a client"},
		{Name: "fallback", Placeholder: "URL", check: checkFallback, target: &s.fallback,
			Help: "web server that answers everyone who is not a client, http://HOST[:PORT] or https://HOST[:PORT]"},
		{Name: "stealth", target: &s.Stealth,
			Help: "answer a client with a wrong credential as anybody else, too"},
		{Name: "allow-origin", Placeholder: "ORIGIN", check: checkOrigin, target: &s.AllowOrigins,
			Help: "let clients send this Origin, like https://app.example, although that is what browsers do (repeatable)"},
		{Name: "trusted-proxy", Placeholder: "CIDR", check: checkNetwork, target: &s.trustedProxies,
			Help: "network or address of reverse proxies in front, whose X-Forwarded-For says where a client is; not bounded by --max-unauthenticated-per-address (repeatable)"},
		{Name: "gateway-ports", target: &s.GatewayPorts, Live: true,
			Help: "let clients listen (-R) on other addresses than loopback"},
		{Name: "max-sessions", Default: "1024", min: 1, max: 1 << 20, target: &s.MaxSessions,
			Help: "sessions in all"},
		{Name: "max-sessions-per-identity", Default: "64", min: 1, max: 1 << 20, target: &s.MaxSessionsPerIdentity,
			Help: "sessions of one identity"},
		{Name: "max-unauthenticated", Default: "1024", min: 1, max: 1 << 20, target: &s.MaxUnauthenticated,
			Help: "connections that have not yet shown a credential, in all"},
		{Name: "max-unauthenticated-per-address", Default: "64", min: 1, max: 1 << 20, target: &s.MaxUnauthenticatedPerAddress,
			Help: "connections that have not yet shown a credential, from one address"},
		{Name: "max-header-bytes", Default: "32KiB", min: 5 << 10, max: 1 << 20, target: &s.MaxHeaderBytes,
			Help: "largest HTTP request header"},
		{Name: "max-opens-per-second", Default: "0", min: 0, max: 1 << 20, target: &s.MaxOpensPerSecond,
			Help: "streams that all clients together may open in a second (0: no limit)"},
		{Name: "max-upload", Default: "0", min: 0, max: 1 << 40, target: &s.MaxUpload,
			Help: "bytes per second from all clients together (0: no limit)"},
		{Name: "max-download", Default: "0", min: 0, max: 1 << 40, target: &s.MaxDownload,
			Help: "bytes per second to all clients together (0: no limit)"},
		{Name: "audit", Placeholder: "FILE|-", file: unless("-"), target: &s.Audit,
			Help: "write a JSON line for each login, stream and listener to a file, or to standard output"},
		{Name: "audit-max-size", Default: "100MiB", min: 64 << 10, max: 1 << 40, target: &s.AuditMaxSize,
			Help: "size at which the file of --audit is renamed and begun anew"},
		{Name: "audit-keep", Default: "10", min: 0, max: 10000, target: &s.AuditKeep,
			Help: "renamed files of --audit that are kept"},
	}, s.Settings.options()...)
}

// sections are the keys of the file that are no options.
func (s *Server) sections() []section {
	return []section{
		{"identities", func(d *decoder, path string, at, node ast.Node) { s.Identities = d.identitiesOf(path, at, node) }},
		{"issuers", func(d *decoder, path string, at, node ast.Node) { s.Issuers = d.issuersOf(path, at, node) }},
	}
}

// LoadServer reads, merges and checks the configuration of culvert-server. The
// warnings are about what works and should not stay so. An error is always of
// type [Problems].
func LoadServer(src Sources) (s *Server, warnings []string, err error) {
	s = new(Server)
	l := load(s.options(), src, s.sections()...)
	l.checkSettings(&s.Settings)
	l.exclusive("token-file", "token")

	credential := ""
	for _, name := range []string{"token-file", "token", "identities-dir"} {
		if l.given(name) {
			credential = l.origin(name, 0).String()
		}
	}
	if s.IdentitiesDir != "" {
		s.Identities = append(s.Identities, l.readIdentities(s.IdentitiesDir)...)
	}
	l.checkIdentities(s.Identities)
	if len(s.Identities) > 0 {
		credential = s.Identities[0].Name.Place()
	}
	switch {
	case s.InsecureNoAuth && credential != "":
		l.problem("insecure-no-auth", 0, "give one of the two", "lets everybody in although there is a credential (%s)", credential)
	case s.InsecureNoAuth:
		l.warn("EVERYBODY who can reach " + s.Listen + " may use this server (insecure-no-auth)")
	case credential == "" && !l.failed("token-file", "token", "identities", "identities-dir"):
		l.problems = append(l.problems, Problem{Key: "--token-file", What: "no credential is configured",
			Hint: "give --token-file FILE or identities in the file of --config, or --insecure-no-auth to let everybody in"})
	}
	l.checkKeyPair(s.TLSCert, s.TLSKey)
	if s.CRL != "" && s.ClientCA == "" && !l.failed("client-ca") {
		l.problem("crl", 0, "give --client-ca too", "revokes nothing without the authorities of client certificates")
	}
	l.checkFront(s)
	if s.MaxSessions < s.MaxSessionsPerIdentity && l.given("max-sessions-per-identity") {
		l.problem("max-sessions-per-identity", 0, "give at most --max-sessions", "%d is more than all sessions (%d)", s.MaxSessionsPerIdentity, s.MaxSessions)
	}
	for _, name := range []string{"audit-max-size", "audit-keep"} {
		if l.given(name) && (s.Audit == "" || s.Audit == "-") && !l.failed("audit") {
			l.problem(name, 0, "give --audit FILE, or leave this out", "there is no file of an audit log")
		}
	}
	l.checkToken(&s.Settings)
	return s, l.warnings, l.problems.Err()
}
