package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/link"
	"culvert/tunnel/gate"
)

// ServerConfig is what a Server is made of. A zero value means the default that
// its comment names.
type ServerConfig struct {
	Listen string      // "host:port" to accept carriers at; required
	Path   string      // of the upgrade request; "/"
	TLS    *tls.Config // nil: plain ws

	Other          http.Handler   // answers what is no client's; nil: 404
	Stealth        bool           // and what is a client's with a wrong credential
	AllowOrigins   []string       // that clients may send, although browsers do; compared exactly
	TrustedProxies []netip.Prefix // whose X-Forwarded-For says where a client is

	// Guard says who a client is and what it may reach; required.
	Guard *auth.Guard

	MaxSessions                  int // 1,024
	MaxSessionsPerIdentity       int // 64
	MaxUnauthenticated           int // connections that are no carriers; 1,024
	MaxUnauthenticatedPerAddress int // 64
	MaxHeaderBytes               int // of an upgrade request; 16 KiB

	Settings
}

// Server is the agent that is connected to. It is made by NewServer and runs
// once.
type Server struct {
	cfg       ServerConfig
	log       events
	budget    *mux.Budget
	listeners *listeners
	registry  *link.Registry
	limited   every
	watches   sync.WaitGroup // of carriers' credentials

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
		{"header bytes", &cfg.MaxHeaderBytes, 16 << 10},
	})}
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		errs = append(errs, fmt.Errorf("%w: listen address: %w", ErrConfig, err))
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
		log:       events{cfg.Logger},
		budget:    mux.NewBudget(int64(cfg.Memory)),
		listeners: newListeners(cfg.Guard, cfg.Settings),
		limited:   every{interval: 10 * time.Second},
		ready:     make(chan struct{}),
	}
	s.registry = link.NewRegistry(link.RegistryConfig{
		Config: cfg.link(), MaxSessions: cfg.MaxSessions, MaxPerIdentity: cfg.MaxSessionsPerIdentity,
		Open: s.serveSession,
		Attached: func(l *link.Link, identity string, resumed bool, c link.Carrier) {
			what := "session opened"
			if resumed {
				what = "session resumed"
			}
			s.log.with(keySession, l.ID(), keyClient, identity).Info(what, carrierAttrs(c)...)
			s.listeners.notify()
		},
		Replaced: func(l *link.Link, identity string, c link.Carrier) {
			s.log.Debug("carrier replaced", keySession, l.ID(), keyClient, identity, keyRemote, c.RemoteAddr())
		},
		Lost: func(l *link.Link, identity string, err error) {
			if !errors.Is(err, net.ErrClosed) { // not by this end
				s.log.Info("session lost", keySession, l.ID(), keyClient, identity, keyError, err)
			}
		},
	})
	return s, nil
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
	ln, err := (&net.ListenConfig{KeepAliveConfig: gate.KeepAlive}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("%w at %s: %w", ErrListen, s.cfg.Listen, err)
	}
	s.addr, _ = netip.ParseAddrPort(ln.Addr().String())
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
				Authenticate: s.authenticate, Admit: s.admit,
				Logger: s.cfg.Logger, Options: s.cfg.carrier(),
			},
			HandshakeTimeout: s.cfg.HandshakeTimeout, MaxHeaderBytes: s.cfg.MaxHeaderBytes,
			MaxUnauthenticated:           s.cfg.MaxUnauthenticated,
			MaxUnauthenticatedPerAddress: s.cfg.MaxUnauthenticatedPerAddress,
			TrustedProxies:               s.cfg.TrustedProxies,
			MaxPipes:                     2 * s.cfg.MaxSessions, // one that a client has left lives on for a while
			MaxPipesPerIdentity:          2 * s.cfg.MaxSessionsPerIdentity,
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
	return err
}

// authenticate is the handler's question.
func (s *Server) authenticate(r *http.Request) (carrier.Client, error) {
	p := auth.Presented{}
	p.Bearer, _ = carrier.BearerToken(r)
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		p.Remote = remote.Addr().Unmap()
	}
	login, err := s.cfg.Guard.Authenticate(r.Context(), p)
	if err != nil {
		return carrier.Client{}, err
	}
	return carrier.Client{Identity: login.Identity, Login: login}, nil
}

// refusals are what a client with a good credential is told.
var refusals = []struct {
	err     error
	refusal carrier.Refusal
}{
	{link.ErrGone, carrier.Refusal{Status: http.StatusGone, Token: carrier.RefusalGone, Text: "no such session"}},
	{link.ErrLimit, carrier.Refusal{Status: http.StatusServiceUnavailable, Token: carrier.RefusalLimit, Text: "too many sessions"}},
	{link.ErrVersion, carrier.Refusal{Status: http.StatusBadRequest, Token: carrier.RefusalVersion, Text: "version not supported"}},
	{link.ErrMalformed, carrier.Refusal{Status: http.StatusBadRequest, Token: carrier.RefusalMalformed, Text: "malformed hello"}},
	{link.ErrStopping, carrier.Refusal{Status: http.StatusServiceUnavailable, Token: carrier.RefusalStopping, Text: "server is stopping"}},
}

// admit decides about an upgrade request.
func (s *Server) admit(r carrier.Request) (carrier.Admission, error) {
	reply, attach, cancel, err := s.registry.Admit(r.Identity, r.Remote, r.Secure, r.Hello)
	if err != nil {
		if errors.Is(err, link.ErrLimit) && s.limited.now() {
			s.log.Warn("limit reached", keyLimit, "sessions", keyClient, r.Identity, keyRemote, r.Remote)
		}
		for _, known := range refusals {
			if errors.Is(err, known.err) {
				return carrier.Admission{}, &known.refusal
			}
		}
		return carrier.Admission{}, err
	}
	login := r.Login.(*auth.Login)
	return carrier.Admission{Reply: reply, Attach: func(c *carrier.Conn) {
		// A credential that ends takes the carrier with it: a client that has
		// another resumes the session with that.
		forget := s.cfg.Guard.Watch(login, func(err error) {
			s.log.Info("credential ended", keyClient, login.Identity, "credential", login.Credential, keyReason, err)
			c.Abort(err)
		})
		s.watches.Go(func() {
			<-c.Done()
			forget()
		})
		attach(c)
	}, Cancel: cancel}, nil
}

// serveSession is the life of one session; it returns when everything of it has
// ended.
func (s *Server) serveSession(l *link.Link, identity, _ string) {
	log := s.log.with(keySession, l.ID(), keyClient, identity)
	p := &peer{id: l.ID(), identity: identity, log: log, attached: l.Attached, probe: func(ctx context.Context) error {
		return probe(ctx, l)
	}}
	known := make(chan struct{}) // closed when p is complete
	cfg := s.cfg.mux(s.budget)
	cfg.Listen = func(ctx context.Context, forward uint32, bind string) (string, func(), error) {
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

	ofClient := s.log.with(keyClient, identity)
	d := &dialer{guard: s.cfg.Guard, identity: identity, timeout: s.cfg.DialTimeout}
	var streams sync.WaitGroup
	streams.Go(func() {
		acceptStreams(session, func(st stream) (relaying func()) {
			switch h := st.Header(); h.Kind {
			case mux.KindDial:
				return serveTarget(d, st, l.ID(), h.Target, ofClient)
			case mux.KindTest:
				return serveTest(st)
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
