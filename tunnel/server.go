package tunnel

import (
	"context"
	"crypto/ecdh"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/carrier/eyeballs"
	"culvert/mux/link"
	"culvert/tunnel/audit"
	"culvert/tunnel/gate"
)

// ServerConfig is what a Server is made of. A zero value means the default that
// its comment names.
type ServerConfig struct {
	Listen string   // "host:port" to accept carriers at; required
	Beside []string // "host:port" of what else the process listens at, where no stream is to lead
	// Backends are "host:port" of web servers that the process itself asks. No client
	// listens on the port of one that is on this machine.
	Backends []string
	Path     string      // of the upgrade request; "/"
	TLS      *tls.Config // nil: plain ws

	Other          http.Handler   // answers what is no client's; nil: 404
	Stealth        bool           // and what is a client's with a wrong credential
	AllowOrigins   []string       // that clients may send, although browsers do; compared exactly
	TrustedProxies []netip.Prefix // whose X-Forwarded-For says where a client is

	// Key opens what clients seal for it (X25519); nil: they cannot seal.
	Key *ecdh.PrivateKey
	// Introduce tells everybody who asks what its public half is, for the first use
	// by a client; a server that is to look like another web site does not.
	Introduce bool

	// Guard says who a client is and what it may reach; required. The server adds
	// its own listeners to what the guard protects.
	Guard *auth.Guard
	// Lookup finds the addresses of names; nil: the system's resolver does.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)

	MaxSessions                  int // 1,024
	MaxSessionsPerIdentity       int // 64
	MaxUnauthenticated           int // connections that are no carriers; 1,024
	MaxUnauthenticatedPerAddress int // 64
	MaxHeaderBytes               int // of a request; 32 KiB

	// Of all clients together, on top of the limits of each identity; 0: none.
	MaxOpensPerSecond      int   // streams, after as many at once
	MaxUpload, MaxDownload int64 // bytes per second from clients, and to them

	// Audit is the record of who came and what was granted; nil: none. It is not
	// closed.
	Audit *audit.Log

	Settings
}

// Server is the agent that is connected to. It is made by NewServer and runs
// once.
type Server struct {
	cfg       ServerConfig
	log       events
	usages    *usages
	origins   origins
	listeners *listeners
	registry  *link.Registry
	limited   every
	attempts  attempts
	addresses eyeballs.Memory // of targets
	own       *own
	watches   sync.WaitGroup // of carriers' credentials

	mu       sync.Mutex
	sessions map[*link.Link]*peer

	stop context.Context // graceful stop; set by Run

	ready chan struct{}  // closed when addr is set
	addr  netip.AddrPort // where carriers are accepted
}

// NewServer checks cfg. It opens nothing. Its errors wrap ErrConfig.
func NewServer(cfg ServerConfig) (*Server, error) {
	errs := []error{cfg.complete(), complete([]limit[int]{
		{"sessions", &cfg.MaxSessions, 1024},
		{"sessions per identity", &cfg.MaxSessionsPerIdentity, 64},
		{"unauthenticated connections", &cfg.MaxUnauthenticated, 1024},
		{"unauthenticated connections per address", &cfg.MaxUnauthenticatedPerAddress, 64},
		{"header bytes", &cfg.MaxHeaderBytes, 32 << 10},
	})}
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		errs = append(errs, fmt.Errorf("%w: listen address: %w", ErrConfig, err))
	}
	if cfg.MaxOpensPerSecond < 0 || cfg.MaxUpload < 0 || cfg.MaxDownload < 0 {
		errs = append(errs, fmt.Errorf("%w: a rate is negative", ErrConfig))
	}
	if cfg.Guard == nil {
		errs = append(errs, fmt.Errorf("%w: no guard", ErrConfig))
	}
	if cfg.Path != "" && !strings.HasPrefix(cfg.Path, "/") {
		errs = append(errs, fmt.Errorf("%w: path %q does not begin with a slash", ErrConfig, cfg.Path))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		log:       newEvents(cfg.Settings),
		usages:    newUsages(&cfg),
		origins:   origins{carriers: make(map[link.Carrier]origin), sessions: make(map[*link.Link]origin)},
		listeners: newListeners(cfg.Guard, cfg.Lookup, cfg.Settings),
		limited:   every{interval: 10 * time.Second},
		own:       newOwn(),
		sessions:  make(map[*link.Link]*peer),
		ready:     make(chan struct{}),
	}
	s.registry = link.NewRegistry(link.RegistryConfig{
		Config: cfg.link(), MaxSessions: cfg.MaxSessions, MaxPerIdentity: cfg.MaxSessionsPerIdentity,
		MaxOf: func(identity string) int { return cfg.Guard.Limits(identity).Sessions },
		GroupOf: func(identity string) (string, int) {
			name, shared := cfg.Guard.SharedLimits(identity)
			return name, shared.Sessions
		},
		Open: s.serveSession,
		Attached: func(l *link.Link, identity string, resumed bool, c link.Carrier) {
			what, event := "session opened", auditSessionOpened
			if resumed {
				what, event = "session resumed", auditSessionResumed
			}
			s.attached(event, l, identity, c)
			s.log.with(keySession, l.ID(), keyClient, identity).Info(what, carrierAttrs(c)...)
			s.listeners.notify()
		},
		Replaced: func(l *link.Link, identity string, c link.Carrier) {
			s.attached(auditSessionMoved, l, identity, c)
			s.log.Debug("carrier replaced", keySession, l.ID(), keyClient, identity, keyRemote, c.RemoteAddr())
		},
		Lost: func(l *link.Link, identity string, err error) {
			if !errors.Is(err, net.ErrClosed) { // not by this end
				s.log.Info("session lost", keySession, l.ID(), keyClient, identity, keyError, err)
			}
		},
	})
	cfg.Guard.Protect(s.own.is)
	cfg.Guard.OnUse(s.expel)
	cfg.Guard.OnUse(func() { cfg.Audit.Event(auditReload) })
	return s, nil
}

// Use puts another directory in force. Streams and listeners that it does not grant
// end at once, and so do carriers with a credential and sessions of an identity that
// are not in it. Everything else goes on. It returns when they have ended, which
// takes about a second at most.
func (s *Server) Use(d *auth.Directory) { s.cfg.Guard.Use(d) }

// SetBackends replaces ServerConfig.Backends. Listeners of clients that are on such a
// port already end with the next Use. An error wraps ErrConfig.
func (s *Server) SetBackends(ctx context.Context, backends []string) error {
	if err := s.own.setBackends(ctx, s.cfg.Lookup, backends); err != nil {
		return fmt.Errorf("%w: backends: %w", ErrConfig, err)
	}
	return nil
}

// expel ends the sessions of identities that are no more.
func (s *Server) expel() {
	s.mu.Lock()
	sessions := maps.Clone(s.sessions)
	s.mu.Unlock()
	var ending sync.WaitGroup
	for l, p := range sessions {
		if !s.cfg.Guard.Knows(p.identity) {
			ending.Go(func() { expelOne(l, p) })
		}
	}
	ending.Wait()
}

func expelOne(l *link.Link, p *peer) {
	p.log.Info("session expelled", keyReason, "its identity was removed")
	l.Close("identity removed")
}

// enter notes a session until leave is called. One whose identity was removed while
// it was being made ends at once.
func (s *Server) enter(l *link.Link, p *peer) (leave func()) {
	s.mu.Lock()
	s.sessions[l] = p
	s.mu.Unlock()
	if !s.cfg.Guard.Knows(p.identity) {
		expelOne(l, p)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, l)
	}
}

// Addr waits until the server listens and returns the address, or ctx's error.
func (s *Server) Addr(ctx context.Context) (netip.AddrPort, error) {
	select {
	case <-s.ready:
		return s.addr, nil
	case <-ctx.Done():
		return netip.AddrPort{}, context.Cause(ctx)
	}
}

// Run serves until ctx ends; then clients are told, streams have the grace time
// to finish, and Run returns nil. Meanwhile sessions that lose their carrier may
// still resume; new ones are refused. It fails when it cannot listen (ErrListen)
// or accept. When it returns, everything that it started has ended.
func (s *Server) Run(ctx context.Context) error {
	lc := net.ListenConfig{KeepAliveConfig: gate.KeepAlive} //nolint:forbidigo // where clients connect to, as configured
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("%w at %s: %w", ErrListen, s.cfg.Listen, err)
	}
	s.addr, _ = netip.ParseAddrPort(ln.Addr().String())
	s.own.add(s.addr)
	for _, bind := range s.cfg.Beside {
		if err := s.own.addBind(ctx, bind); err != nil {
			ln.Close()
			return fmt.Errorf("%w: address to listen at %s: %w", ErrConfig, bind, err)
		}
	}
	if err := s.SetBackends(ctx, s.cfg.Backends); err != nil {
		ln.Close()
		return err
	}
	close(s.ready)
	s.log.Info("server listening", keyAddress, s.addr.String(), "tls", s.cfg.TLS != nil)

	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	s.stop = stop
	accepting, endAccepting := context.WithCancel(context.Background())
	defer endAccepting()
	accepted := make(chan error, 1)
	go func() {
		accepted <- carrier.NewServer(carrier.ServerConfig{
			Handler: &carrier.Handler{
				Path: s.cfg.Path, Other: s.cfg.Other, Stealth: s.cfg.Stealth, AllowOrigins: s.cfg.AllowOrigins,
				Authenticate: s.authenticate, Refused: s.refusedSealed, Challenges: s.challenges, Admit: s.admit,
				Key: s.cfg.Key, Introduce: s.cfg.Introduce, HandshakeTimeout: s.cfg.HandshakeTimeout,
				Logger: s.cfg.Logger, Options: s.cfg.carrier(),
			},
			HandshakeTimeout: s.cfg.HandshakeTimeout, MaxHeaderBytes: s.cfg.MaxHeaderBytes,
			MaxUnauthenticated:           s.cfg.MaxUnauthenticated,
			MaxUnauthenticatedPerAddress: s.cfg.MaxUnauthenticatedPerAddress,
			TrustedProxies:               s.cfg.TrustedProxies,
			MaxPipes:                     2 * s.cfg.MaxSessions, // one that a client has left lives on for a while
			MaxPipesPerIdentity:          2 * s.cfg.MaxSessionsPerIdentity,
			PipeMemory:                   int64(pipeMemory(&s.cfg)),
			Logger:                       s.cfg.Logger,
		}).Serve(accepting, ln, s.cfg.TLS)
		cancel() // if that was by itself, the rest stops too
	}()

	<-stop.Done()
	s.registry.Stop()
	s.listeners.close()
	s.registry.Wait()
	endAccepting()
	err = <-accepted
	s.registry.Wait() // of a session whose upgrade was just under way
	s.listeners.conns.Wait()
	s.watches.Wait()
	s.usages.ends.Wait()
	s.usages.floods.flush()
	return err
}

// authenticate is the handler's question.
func (s *Server) authenticate(r *http.Request) (carrier.Client, error) {
	// A credential in the header, even a bad one, is what the client wants to be known by.
	p := auth.Presented{AtOnce: s.cfg.Stealth}
	if key, ok := carrier.PeerKey(r); ok {
		p.Key = &key
	} else if token, ok := carrier.BearerToken(r); ok {
		p.Bearer = token
	} else if user, password, ok := carrier.BasicPassword(r); ok {
		p.User, p.Password = user, password
	} else if carrier.HasAuthorization(r) {
		p.Garbled = true
	} else if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		p.Certificates = r.TLS.PeerCertificates
	}
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		p.Remote = remote.Addr().Unmap()
	}
	login, err := s.cfg.Guard.Authenticate(r.Context(), p)
	if err != nil {
		s.refused(r.RemoteAddr, p.Kind(), credentialOf(p), err)
		switch {
		case errors.Is(err, auth.ErrThrottled), errors.Is(err, auth.ErrBusy):
			err = fmt.Errorf("%w: %w", err, errAgain)
		case errors.Is(err, auth.ErrUnavailable):
			err = fmt.Errorf("%w: %w", err, errUnavailable)
		}
		return carrier.Client{}, err
	}
	return carrier.Client{Identity: login.Identity, Login: login}, nil
}

// refusedSealed is told of requests whose seal cannot be opened.
func (s *Server) refusedSealed(r *http.Request, err error) {
	s.refused(r.RemoteAddr, "sealed", credential{}, err)
}

// refused reports a login that was refused, once for each attempt.
func (s *Server) refused(remote, kind string, c credential, err error) {
	var addr netip.Addr
	if at, err := netip.ParseAddrPort(remote); err == nil {
		addr = at.Addr().Unmap()
	}
	report, leftOut := s.attempts.note(addr, c, time.Now())
	if !report {
		return
	}
	attrs := []slog.Attr{slog.String(keyRemote, remote), slog.String(keyCredential, kind)}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int(keyLeftOut, leftOut))
	}
	s.cfg.Audit.Event(auditLoginRefused, append(attrs, auditError(err))...)
	s.log.LogAttrs(context.Background(), slog.LevelWarn, "login refused", append(attrs, slog.String(keyReason, err.Error()))...)
}

// errAgain is the answer to a client whose credential nobody has looked at.
var errAgain = &carrier.Refusal{Status: http.StatusTooManyRequests, Text: "Too Many Requests", Again: 6 * time.Second}

// errUnavailable is the answer to a client whose credential cannot be checked now. The
// keys of an issuer are fetched every ten seconds at most.
var errUnavailable = &carrier.Refusal{Status: http.StatusServiceUnavailable, Text: "Service Unavailable", Again: 10 * time.Second}

// challenges say how a client may log in.
func (s *Server) challenges() []string {
	all := []string{"Bearer"}
	if s.cfg.Guard.TakesPasswords() {
		all = append(all, `Basic realm="Restricted", charset="UTF-8"`)
	}
	return all
}

// refusals are what a client with a good credential is told.
var refusals = []struct {
	err     error
	refusal carrier.Refusal
}{
	{link.ErrGone, carrier.Refusal{Status: http.StatusGone, Token: carrier.RefusalGone, Text: "no such session"}},
	{link.ErrLimit, carrier.Refusal{Status: http.StatusServiceUnavailable, Token: carrier.RefusalLimit, Text: "too many sessions"}},
	{link.ErrBusy, carrier.Refusal{Status: http.StatusServiceUnavailable, Token: carrier.RefusalLimit, Text: "too many handshakes", Again: time.Second}},
	{link.ErrVersion, carrier.Refusal{Status: http.StatusBadRequest, Token: carrier.RefusalVersion, Text: "version not supported"}},
	{link.ErrMalformed, carrier.Refusal{Status: http.StatusBadRequest, Token: carrier.RefusalMalformed, Text: "malformed hello"}},
	{link.ErrStopping, carrier.Refusal{Status: http.StatusServiceUnavailable, Token: carrier.RefusalStopping, Text: "server is stopping"}},
}

// admit decides about an upgrade request.
func (s *Server) admit(r carrier.Request) (carrier.Admission, error) {
	login := r.Login.(*auth.Login)
	from := origin{login.Credential, r.Remote}
	who := []slog.Attr{slog.String(keyIdentity, login.Identity), slog.String(keyCredential, from.credential), slog.String(keyRemote, from.remote)}
	var reply []byte
	var attach func(link.Carrier)
	var cancel func()
	var err error
	if r.Sealed { // what was recorded proves nothing: the client has yet to say something
		reply, attach, err = s.registry.Consider(r.Identity, r.Remote, r.Secure, r.Hello)
	} else {
		reply, attach, cancel, err = s.registry.Admit(r.Identity, r.Remote, r.Secure, r.Hello)
	}
	r.OnConfirmed(func(confirmed bool) {
		if !confirmed {
			if s.usages.floods.admit(flood{event: auditUnconfirmed}) { // of all together: whose they are is not known
				s.cfg.Audit.Event(auditUnconfirmed, who...)
			}
			return
		}
		s.recordLogin(auditLogin, login, who...)
		if err == nil {
			return
		}
		s.recordLogin(auditSessionRefused, login, append(who, auditError(err))...)
		if errors.Is(err, link.ErrLimit) && s.limited.now() {
			s.log.Warn("limit reached", keyLimit, "sessions", keyClient, r.Identity, keyRemote, r.Remote)
		}
	})
	if err != nil {
		for _, known := range refusals {
			if errors.Is(err, known.err) {
				return carrier.Admission{}, &known.refusal
			}
		}
		return carrier.Admission{}, err
	}
	return carrier.Admission{Reply: reply, Attach: func(c *carrier.Conn) {
		s.origins.carrier(c, from)
		// A credential that ends takes the carrier with it: a client that has
		// another resumes the session with that.
		forget := s.cfg.Guard.Watch(login, func(err error) {
			s.log.Info("credential ended", keyClient, login.Identity, "credential", login.Credential, keyReason, err)
			s.cfg.Audit.Event(auditLoginEnded, append(who, auditError(err))...)
			if s.cfg.Guard.Knows(login.Identity) {
				c.Dismiss(err, "credential ended")
			} // else its session ends, and tells the client on this carrier
		})
		attach(c)
		s.watches.Go(func() { // only now: what is recorded of attach needs the origin
			<-c.Done()
			forget()
			s.origins.carrierEnded(c)
		})
	}, Cancel: cancel}, nil
}

// recordLogin records an event of a request with a good credential, of which there may be
// very many.
func (s *Server) recordLogin(event string, login *auth.Login, attrs ...slog.Attr) {
	if s.cfg.Audit != nil && s.usages.floods.admit(flood{event: event, identity: login.Identity}) {
		s.cfg.Audit.Event(event, attrs...)
	}
}

// attached has it recorded that a session has another carrier.
func (s *Server) attached(event string, l *link.Link, identity string, c link.Carrier) {
	s.origins.attached(l, c)
	s.account(l, identity).event(event)
}

// account is nil if nothing is recorded.
func (s *Server) account(l *link.Link, identity string) *account {
	if s.cfg.Audit == nil {
		return nil
	}
	return &account{log: s.cfg.Audit, identity: identity, session: l.ID(), origin: func() origin { return s.origins.session(l) }}
}

// serveSession is the life of one session; it returns when everything of it has
// ended.
func (s *Server) serveSession(l *link.Link, identity, _ string) {
	log := s.log.with(keySession, l.ID(), keyClient, identity)
	u := s.usages.join(identity)
	defer s.usages.leave(u)
	a, began := s.account(l, identity), time.Now()
	defer s.origins.sessionEnded(l)
	p := &peer{id: l.ID(), identity: identity, usage: u, account: a, log: log, attached: l.Attached, probe: func(ctx context.Context) error {
		return probe(ctx, l)
	}}
	known := make(chan struct{}) // closed when p is complete
	cfg := s.cfg.mux(u.memory)
	cfg.Listen = func(ctx context.Context, forward uint32, bind string) (mux.Listener, error) {
		<-known
		return s.listeners.listen(ctx, p, forward, bind)
	}
	session, err := mux.Server(l, cfg)
	if err != nil {
		log.Error("session failed", keyError, err)
		return
	}
	p.session = sessionOf{session}
	close(known)
	defer s.enter(l, p)()

	ofClient := s.log.with(keyClient, identity)
	d := &dialer{guard: s.cfg.Guard, identity: identity, timeout: s.cfg.DialTimeout, lookup: s.cfg.Lookup, memory: &s.addresses, usage: u}
	var streams sync.WaitGroup
	streams.Go(func() {
		acceptStreams(session, u.opening, func(accepted stream) (relaying func()) {
			e := a.stream(accepted.ID(), accepted.Header())
			if err := u.enterTold(e); err != nil {
				accepted.Refuse(verdict(err, mux.Limit))
				return nil
			}
			st := u.meter(accepted, e)
			switch h := st.Header(); h.Kind {
			case mux.KindDial:
				return serveTarget(d, st, l.ID(), h.Target, ofClient, e)
			case mux.KindTest:
				return serveTest(st, u, e)
			default:
				st.Refuse(mux.NotFound, "this end has no forwards of its own")
				return nil
			}
		})
	})

	var reason string // why this end lets it end
	var told bool     // by the client that it takes no new streams
	select {
	case <-session.Done():
	case <-session.PeerGoingAway():
		told, reason = true, "client is leaving"
		s.listeners.release(p)
		drain(s.stop, session, l, told)
	case <-s.stop.Done():
	}
	if s.stop.Err() != nil {
		reason = "server is stopping"
		if !told {
			session.GoAway(reason)
		}
		grace, cancel := context.WithTimeout(context.Background(), s.cfg.Grace)
		drain(grace, session, l, told)
		cancel()
	}
	s.listeners.release(p)
	closeSession(session, l, reason)
	streams.Wait()
	log.sessionEnded(session, reason)
	why := slog.String(keyReason, reason)
	if reason == "" {
		why = auditError(session.Err())
	}
	a.event(auditSessionEnded, since(began), why)
}

// probe asks the carrier of l whether its client is there.
func probe(ctx context.Context, l *link.Link) error {
	c, ok := l.Carrier().(interface {
		Probe(ctx context.Context) error
	})
	if !ok {
		return errNoCarrier
	}
	return c.Probe(ctx)
}
