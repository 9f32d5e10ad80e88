package config

// Server is the configuration of culvert-server.
type Server struct {
	Listen         string // host:port; no host means all addresses
	Path           string
	Token          Secret // empty when TokenFile is set
	TokenFile      string // "" when Token is set
	InsecureNoAuth bool   // neither is set then
	TLSCert        string // file; set when TLSKey is
	TLSKey         string // file
	GatewayPorts   bool

	MaxSessions                  int
	MaxSessionsPerIdentity       int
	MaxUnauthenticated           int
	MaxUnauthenticatedPerAddress int
	MaxHeaderBytes               Size

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
			Help: "path of the upgrade request; all others are not found"},
		{Name: "token-file", Placeholder: "FILE", target: &s.TokenFile,
			Help: "file with the tokens of clients or their hashes, sha256:HASH LABEL, one a line"},
		{Name: "token", Placeholder: "TOKEN", target: &s.Token,
			Help: "a client's token itself; on the command line everybody on the machine can see it"},
		{Name: "insecure-no-auth", target: &s.InsecureNoAuth,
			Help: "let everybody in who can reach the server"},
		{Name: "tls-cert", Placeholder: "FILE", target: &s.TLSCert,
			Help: "PEM file with the certificate and its chain; without it the server speaks plain ws://"},
		{Name: "tls-key", Placeholder: "FILE", target: &s.TLSKey,
			Help: "PEM file with the certificate's private key"},
		{Name: "gateway-ports", target: &s.GatewayPorts,
			Help: "let clients listen (-R) on other addresses than loopback"},
		{Name: "max-sessions", Default: "1024", min: 1, max: 1 << 20, target: &s.MaxSessions,
			Help: "sessions in all"},
		{Name: "max-sessions-per-identity", Default: "64", min: 1, max: 1 << 20, target: &s.MaxSessionsPerIdentity,
			Help: "sessions of one identity"},
		{Name: "max-unauthenticated", Default: "1024", min: 1, max: 1 << 20, target: &s.MaxUnauthenticated,
			Help: "connections that have not yet shown a credential, in all"},
		{Name: "max-unauthenticated-per-address", Default: "64", min: 1, max: 1 << 20, target: &s.MaxUnauthenticatedPerAddress,
			Help: "connections that have not yet shown a credential, from one address"},
		{Name: "max-header-bytes", Default: "16KiB", min: 4 << 10, max: 1 << 20, target: &s.MaxHeaderBytes,
			Help: "largest HTTP request header"},
	}, s.Settings.options()...)
}

// LoadServer reads, merges and checks the configuration of culvert-server. The
// warnings are about what works and should not stay so. An error is always of
// type [Problems].
func LoadServer(src Sources) (s *Server, warnings []string, err error) {
	s = new(Server)
	l := load(s.options(), src)
	l.checkSettings(&s.Settings)
	l.exclusive("token-file", "token")

	credential := ""
	for _, name := range []string{"token-file", "token"} {
		if l.given(name) {
			credential = name
		}
	}
	switch {
	case s.InsecureNoAuth && credential != "":
		l.problem("insecure-no-auth", 0, "give one of the two", "lets everybody in although there is a credential (%s)", l.origin(credential, 0))
	case s.InsecureNoAuth:
		l.warn("EVERYBODY who can reach " + s.Listen + " may use this server (insecure-no-auth)")
	case credential == "" && !l.failed("token-file", "token"):
		l.problems = append(l.problems, Problem{Key: "--token-file", What: "no credential is configured",
			Hint: "give --token-file FILE, or --insecure-no-auth to let everybody in"})
	}
	l.checkKeyPair(s.TLSCert, s.TLSKey)
	if s.MaxSessions < s.MaxSessionsPerIdentity && l.given("max-sessions-per-identity") {
		l.problem("max-sessions-per-identity", 0, "give at most max-sessions", "%d is more than all sessions (%d)", s.MaxSessionsPerIdentity, s.MaxSessions)
	}
	l.checkToken(&s.Settings)
	return s, l.warnings, l.problems.err()
}
