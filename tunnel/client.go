package tunnel

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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/carrier/eyeballs"
	"culvert/mux/link"
)

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	// Servers are ws or wss, path included; at least one. They are tried in this
	// order, or at random, but those that failed lately after the others. While a
	// session may be resumed, the server that it was last connected to comes first.
	Servers      []*url.URL
	RandomOrder  bool
	DialAddress  string                      // to connect to instead of the URL's host and port
	Carrier      carrier.Mode                // carrier.ModeAuto if ""
	Header       http.Header                 // extra, for the upgrade request
	SecretHeader func() (http.Header, error) // more of it, asked for at every dial; nil: none
	Credential   func() (string, error)      // the bearer token, asked for at every dial; nil: none
	// CredentialLater keeps NewClient from asking for the credential to see what is
	// wrong with it: that takes time, or somebody's attention.
	CredentialLater bool

	TLS            *tls.Config   // for wss; nil: the system's roots
	Pins           []carrier.Pin // keys that a wss server may have; none: any
	AllowPlaintext bool          // permit a credential over ws to a host that is not loopback

	// Seal says how carriers to a server are sealed, and is asked at every dial; nil:
	// they are not.
	Seal func(server *url.URL) (carrier.Seal, error)

	// Proxy returns the forward proxy to the server (see carrier.Dialer.Proxy);
	// nil: none.
	Proxy func(server *url.URL) (*url.URL, error)

	Local  []Forward // listen here, dial from the server
	Remote []Forward // listen at the server, dial from here

	// RetryInitial goes on trying when the first attempt to connect fails, which
	// otherwise ends Run. After a first success every failure is retried.
	RetryInitial bool
	MaxBackoff   time.Duration // between two attempts to connect; 30 s

	// Pings may be sent more often than every Heartbeat when carriers die of
	// quiet, down to HeartbeatMin, and less often when they do not, up to
	// HeartbeatMax. 1 s, and Heartbeat.
	HeartbeatMin, HeartbeatMax time.Duration
	// MaxCarrierAge is the age at which a carrier is replaced; 0: before the age
	// at which they are found to die.
	MaxCarrierAge time.Duration
	// StateFile keeps what is found about the way to the server; "": nothing.
	StateFile string

	Settings
}

// Client is the agent that connects. It is made by NewClient and runs once.
type Client struct {
	cfg     ClientConfig
	dialers []*carrier.Dialer // as cfg.Servers
	servers *servers
	log     events
	budget  *mux.Budget
	guard   *auth.Guard
	local   *locals
	remote  *remoteForwards

	listening chan struct{} // closed when there are the first listeners

	learners []*learner // of the ways to cfg.Servers
	newWatch func() *watch

	connected atomic.Bool     // there was a session that worked
	demand    link.Demand     // connections that wait for a session
	addresses eyeballs.Memory // of the targets of remote forwards

	mu      sync.Mutex
	current *clientSession // takes new streams; nil while there is none
	changed chan struct{}  // closed and replaced when current changes
	addr    string         // of the server, as a session saw it last
	from    string         // the route to it
}

// way is what the last session saw of the way to the server: the network may become
// another one between two sessions.
func (c *Client) way() (addr, from string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addr, c.from
}

func (c *Client) setWay(addr, from string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addr, c.from = addr, from
}

// NewClient checks cfg. It opens nothing. Its errors wrap ErrConfig, or are the
// carrier's for a server that must not be dialled.
func NewClient(cfg ClientConfig) (*Client, error) {
	errs := []error{cfg.complete()}
	errs = append(errs, complete([]limit[time.Duration]{
		{"largest back-off", &cfg.MaxBackoff, 30 * time.Second},
		{"shortest heartbeat", &cfg.HeartbeatMin, time.Second},
		{"longest heartbeat", &cfg.HeartbeatMax, cfg.Heartbeat},
		{"largest age of a carrier", &cfg.MaxCarrierAge, 0},
	}))
	if len(cfg.Servers) == 0 {
		errs = append(errs, fmt.Errorf("%w: no server", ErrConfig))
	}
	for _, f := range slices.Concat(cfg.Local, cfg.Remote) {
		errs = append(errs, f.check())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	c := &Client{
		cfg:      cfg,
		servers:  newServers(len(cfg.Servers), cfg.RandomOrder),
		log:      newEvents(cfg.Settings),
		budget:   mux.NewBudget(int64(cfg.Memory)),
		guard:    auth.NewGuard(granted(cfg.Local, cfg.Remote)),
		newWatch: newWatch,
		changed:  make(chan struct{}),
		remote:   newRemoteForwards(cfg.Remote),

		listening: make(chan struct{}),
	}
	c.local = &locals{client: c}
	addresses := new(eyeballs.Memory)
	for _, u := range cfg.Servers {
		d := &carrier.Dialer{
			URL: u, Address: cfg.DialAddress, Proxy: cfg.Proxy, Addresses: addresses,
			Mode: cmp.Or(cfg.Carrier, carrier.ModeAuto), Ladder: new(carrier.Ladder),
			TLS: cfg.TLS, Pins: cfg.Pins, AllowPlaintext: cfg.AllowPlaintext,
			Header: cfg.Header, SecretHeader: cfg.SecretHeader, Cookies: new(carrier.Cookies), Credential: cfg.Credential,
			Timeout: cfg.HandshakeTimeout, MaxHeartbeat: cfg.HeartbeatMax, Options: cfg.carrier(),
			Slow: func(waitingFor string, after time.Duration) {
				c.log.Info("still connecting", keyServer, u.Host, keyWaiting, waitingFor, keyAfter, after.Round(time.Second))
			},
		}
		if cfg.Seal != nil {
			d.Seal = func() (carrier.Seal, error) { return cfg.Seal(u) }
		}
		if cfg.CredentialLater {
			d.Credential = func() (string, error) { return "unknown", nil }
		}
		if err := d.Validate(); err != nil {
			return nil, err
		}
		d.Credential = cfg.Credential
		c.dialers = append(c.dialers, d)
		c.learners = append(c.learners, &learner{
			server: serverAddress(u), memory: memory{cfg.StateFile}, log: c.log,
			path: pathLimits{
				heartbeat: cfg.Heartbeat, min: cfg.HeartbeatMin, max: cfg.HeartbeatMax, maxAge: cfg.MaxCarrierAge,
			},
		})
	}
	return c, nil
}

// granted is what the client itself may do: listen for its local forwards and dial
// the targets of its remote ones, and nothing else, whatever a server asks for. What
// its user has named, or a name of his leads to, is not questioned. The forwards
// were checked.
func granted(local, remote []Forward) *auth.Directory {
	var policy auth.Policy
	for _, f := range local {
		host, port, _ := splitBind(bindAddress(f.Bind, f.Port))
		policy.Listen = append(policy.Listen, auth.Exactly(host, port))
	}
	for _, f := range remote {
		host, port, _ := splitTarget(f.Target)
		policy.Dial = append(policy.Dial, auth.Exactly(host, port))
	}
	d, _ := auth.NewDirectory(auth.DirectoryConfig{Anybody: &auth.Identity{Policy: policy}}) // nothing in it can be wrong
	return d
}

// Run listens, connects and stays connected until ctx ends; then streams have
// the grace time to finish and Run returns nil. It fails when a forward cannot
// listen (ErrListen) and, unless RetryInitial, when the first attempt to connect
// does. When it returns, everything that it started has ended.
func (c *Client) Run(ctx context.Context) error {
	for _, l := range c.learners {
		l.recall()
	}
	defer c.local.end()
	if err := c.local.start(ctx, c.cfg.Local); err != nil {
		return err
	}
	close(c.listening)
	return c.runSessions(ctx)
}

// open opens a stream on the session of the moment, for which it waits.
func (c *Client) open(ctx context.Context, h mux.Header) (stream, string, error) {
	waiting := false
	for {
		c.mu.Lock()
		s, changed := c.current, c.changed
		c.mu.Unlock()
		if s != nil {
			st, err := s.mux.Open(ctx, h)
			if err == nil {
				return st, s.link.ID(), nil
			}
			if ctx.Err() == nil && !lost(err) {
				return nil, "", err
			}
			s.unable()
		}
		if !waiting {
			waiting = true
			defer c.demand.Add()()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, "", errNoSession
		}
	}
}

// ready makes s take new streams, unless it is retired, and unready ends that.
func (c *Client) ready(s *clientSession) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-s.retired:
	default:
		c.current = s
		c.changedLocked()
	}
}

func (c *Client) unready(s *clientSession) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == s {
		c.current = nil
		c.changedLocked()
	}
}

func (c *Client) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// lasting is how long a session must have lasted for the next one to be made at
// once.
const lasting = 10 * time.Second

// runSessions makes one session after the other until ctx ends or an error is
// final. A session whose end its server has announced goes on beside its
// successor until its streams have ended, but one such session at most.
func (c *Client) runSessions(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var leaving *clientSession
	var pause backoff
	for {
		s, err := c.newSession(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		running.Go(s.run)
		<-s.retired
		if s.failure != nil {
			return s.failure
		}
		if leaving != nil {
			leaving.cancel()
		}
		leaving = s
		if time.Since(began) > lasting {
			pause.reset()
		}
		if c.demand.Pause(ctx, pause.next(200*time.Millisecond, c.cfg.MaxBackoff), 0); ctx.Err() != nil {
			return nil
		}
	}
}

// clientSession is one session of a client.
//
//	connecting ─▶ current ◀─▶ resuming
//	     │           │            │
//	     └───────────┴─▶ retired ─┴─▶ ended
//
// Retired by its server, by the end of its stream numbers or by the end of its
// context, it takes no new streams and lets those it has end.
type clientSession struct {
	client  *Client
	link    *link.Link
	mux     *mux.Session
	remotes *remotes
	log     events
	stop    context.Context    // the client stops
	ctx     context.Context    // that, or the session is to end whatever its streams do
	cancel  context.CancelFunc // of ctx

	usedUp    chan struct{} // has an element when an open found that there are no more stream numbers
	elsewhere chan struct{} // has an element when its server fails and another one would take a new session
	failed    chan error    // has an element when there is an error that is final for the client
	retired   chan struct{} // closed when it takes no new streams
	retire    func()
	failure   error         // final for the client; valid after retired
	opened    chan struct{} // closed with the first carrier
	initial   bool          // the client's first session that had a carrier; valid after opened
	carrier   link.Carrier  // that the link rides on, or nil; owned by link.Maintain
	lesson    *lesson       // of the last carrier, until the next attempt to dial is over; owned by link.Maintain
	replacing bool          // a dial of the next carrier has begun while the present one is used; owned by link.Maintain
	server    int           // that of the last carrier, -1 before the first; owned by link.Maintain

	address atomic.Value            // string: what the last carrier was connected to
	learner atomic.Pointer[learner] // of the way to server
}

func (c *Client) newSession(ctx context.Context) (*clientSession, error) {
	l := link.New(c.cfg.link())
	m, err := mux.Client(l, c.cfg.mux(c.budget))
	if err != nil {
		l.Close("no session")
		return nil, err
	}
	log := c.log.with(keySession, l.ID())
	s := &clientSession{
		client: c, link: l, mux: m, log: log, remotes: newRemotes(m, c.cfg.Settings, log), stop: ctx,
		usedUp: make(chan struct{}, 1), elsewhere: make(chan struct{}, 1), failed: make(chan error, 1),
		retired: make(chan struct{}), opened: make(chan struct{}), server: -1,
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.retire = sync.OnceFunc(func() {
		close(s.retired)
		c.unready(s)
	})
	return s, nil
}

// run returns when everything of the session has ended.
func (s *clientSession) run() {
	defer s.cancel()
	life, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.maintain(life) })
	running.Go(func() { acceptStreams(s.mux, nil, s.serve) })
	running.Go(func() { s.listen(life) })
	running.Go(func() { s.watch(life) })
	running.Go(func() { s.announce(life) })

	var reason string // why this end lets it end
	var told bool     // by the server that it takes no new streams
	select {
	case <-s.mux.Done():
	case s.failure = <-s.failed:
		reason = "client gives up"
	case <-s.mux.PeerGoingAway():
		told, reason = true, "server is leaving"
		s.leave(reason, told)
	case <-s.usedUp:
		reason = "stream numbers used up"
		s.mux.GoAway(reason)
		s.leave(reason, told)
	case <-s.elsewhere:
		// Its streams have the resume window to get their server back; new ones
		// need not wait for that.
		reason = "its server fails"
		s.mux.GoAway(reason)
		s.leave(reason, told)
	case <-s.stop.Done():
	}
	if s.stop.Err() != nil {
		reason = "client is stopping"
		s.retire()
		if !told {
			s.mux.GoAway(reason)
		}
		grace, cancel := context.WithTimeout(context.Background(), s.client.cfg.Grace)
		drain(grace, s.mux, s.link, told)
		cancel()
	}
	closeSession(s.mux, s.link, reason)
	end()
	running.Wait()
	select {
	case <-s.opened:
		s.log.sessionEnded(s.mux, reason)
	default: // there never was one
	}
	s.retire()
}

// leave lets another session take over while the streams of this one go on.
func (s *clientSession) leave(reason string, told bool) {
	s.log.Info("session leaving", keyReason, reason)
	s.remotes.release()
	s.retire()
	drain(s.ctx, s.mux, s.link, told)
}

// unable is told of an open that the session could not serve. If it has not
// ended, it has used up its stream numbers.
func (s *clientSession) unable() {
	s.client.unready(s)
	select {
	case <-s.mux.Done():
	case s.usedUp <- struct{}{}:
	default:
	}
}

func (s *clientSession) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// maintain keeps the link on a carrier until ctx or the link ends.
func (s *clientSession) maintain(ctx context.Context) {
	c := s.client
	// A server that asks to come back later is there.
	final := func(err error) bool { return !c.cfg.RetryInitial && !c.connected.Load() && retryAfter(err) == 0 }
	err := s.link.Maintain(ctx, link.Redial{
		Dial: s.dial, Secure: c.secure(), Max: c.cfg.MaxBackoff, Fatal: final,
		RetryAfter: retryAfter, Demand: &c.demand,
		ReplaceAfter: s.replaceAfter,
		Replaced: func(on link.Carrier) {
			s.riding(on)
			s.learner.Load().replaced()
			s.log.Debug("carrier replaced", keyRemote, on.RemoteAddr())
		},
		NotReplaced: func(err error, next time.Duration) {
			s.replacing = false
			s.log.Info("carrier not replaced", keyError, err, keyNext, next)
		},
		Attached: func(resumed bool, on link.Carrier) {
			s.riding(on)
			s.lesson.resumed(s.learner.Load())
			s.lesson = nil
			where := append([]any{keyServer, c.dialers[s.server].URL.Host}, carrierAttrs(on)...)
			if resumed {
				s.log.Info("session resumed", where...)
			} else {
				s.log.Info("session opened", where...)
				s.initial = c.connected.CompareAndSwap(false, true)
				close(s.opened)
			}
			c.ready(s)
		},
		Lost: func(err error, next time.Duration) {
			c.unready(s)
			s.lesson = nil
			switch {
			case errors.Is(err, net.ErrClosed): // by this end
			case s.carrier != nil:
				s.log.Info("session lost", keyError, err, keyNext, next)
				if !s.replacing { // else the server may have ended it for the one that follows
					s.lesson = s.learner.Load().lost(s.carrier, err)
				}
			default:
				s.log.Warn("connect failed", keyError, err, keyNext, next)
			}
			s.carrier, s.replacing = nil, false
		},
	})
	if final(err) {
		s.fail(err)
	}
}

// replaceAfter says how long from now on a carrier may be used; 0: as long as it
// lasts. One that makes do without a WebSocket is replaced when that may be tried
// again.
func (s *clientSession) replaceAfter(on link.Carrier) time.Duration {
	after := s.learner.Load().replaceAfter(on)
	dialer := s.client.dialers[s.server]
	if c, ok := on.(*carrier.Conn); ok && c.Mode() == carrier.ModeHTTP && dialer.Mode == carrier.ModeAuto {
		if again := max(dialer.Ladder.Again(), time.Second); after == 0 || again < after {
			after = again
		}
	}
	return after
}

// riding notes what the link rides on from now on.
func (s *clientSession) riding(c link.Carrier) {
	s.carrier, s.replacing = c, false
	if addr, err := netip.ParseAddrPort(c.RemoteAddr()); err == nil { // a name would be looked up again and again
		s.address.Store(addr.String())
	}
}

// ServerKey asks the server, one of ClientConfig.Servers, for the public key that
// carriers to it are to be sealed for. Nothing says that it is the right one.
func (c *Client) ServerKey(ctx context.Context, server *url.URL) ([32]byte, error) {
	i := slices.Index(c.cfg.Servers, server)
	return c.dialers[i].AskKey(ctx)
}

// secure reports whether every carrier is sealed, or under TLS at this end.
func (c *Client) secure() bool {
	return c.cfg.Seal != nil || !slices.ContainsFunc(c.cfg.Servers, func(u *url.URL) bool { return u.Scheme != "wss" && u.Scheme != "https" })
}

// dial makes one carrier, to the first server that gives one. The servers may have
// the session in common, or be two ways to the same one, so all of them are asked
// to resume it. That one of them does not know it is final only if it is the one
// that had it last; of another it says that it would take a new session.
func (s *clientSession) dial(ctx context.Context, hello []byte) (link.Carrier, []byte, error) {
	servers := s.client.servers
	failed := &ServersError{}
	alternative := false
	order := servers.order(time.Now(), s.server)
	if s.carrier != nil { // to be replaced; only its server knows the session for sure
		order, s.replacing = []int{s.server}, true
	}
	for _, i := range order {
		if err := servers.open(i, time.Now()); err != nil {
			failed.Errs = append(failed.Errs, err)
			continue
		}
		conn, reply, err := s.client.dialers[i].Dial(ctx, hello)
		if err == nil {
			servers.worked(i)
			s.server = i
			s.learner.Store(s.client.learners[i])
			s.learner.Load().dialled(conn)
			for _, err := range failed.Errs {
				s.log.Warn("server failed", keyError, err)
			}
			return conn, reply, nil
		}
		var refused *carrier.RefusedError
		gone := errors.As(err, &refused) && refused.Token == carrier.RefusalGone
		switch {
		case gone && i == s.server:
			return nil, nil, fmt.Errorf("%w: %w", link.ErrGone, err)
		case gone:
			servers.worked(i)
			alternative = true
		case ctx.Err() == nil:
			servers.failed(i, time.Now(), err)
		}
		failed.Errs = append(failed.Errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if alternative {
		select {
		case s.elsewhere <- struct{}{}:
		default:
		}
	}
	if len(failed.Errs) == 1 {
		return nil, nil, failed.Errs[0]
	}
	return nil, nil, failed
}

// serverAddress is the host and port of a server's URL.
func serverAddress(u *url.URL) string {
	port := "80"
	if u.Scheme == "wss" || u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
}

// listen asks for all remote forwards, and for those that come later, and gives up
// those that go, until the session is retired. The client's first session must get
// all that it was made with, so that a mistake in the configuration is told at once.
func (s *clientSession) listen(ctx context.Context) {
	select {
	case <-s.opened:
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	asking := make(map[*remoteForward]context.CancelFunc)
	for {
		forwards, changed := s.client.remote.now()
		for f, end := range asking {
			if !slices.Contains(forwards, f) {
				end()
				s.remotes.drop(f)
				delete(asking, f)
			}
		}
		for _, f := range forwards {
			if asking[f] != nil {
				continue
			}
			life, end := context.WithCancel(ctx)
			asking[f] = end
			var first *mux.Forward
			if f.required && s.initial && !s.client.cfg.RetryInitial {
				listening, err := s.remotes.listen(life, f)
				if err == nil {
					first = &listening
				} else if ctx.Err() == nil && mux.CodeOf(err) != mux.SessionLost {
					s.fail(listenError(f.now(), err))
					return
				}
			}
			running.Go(func() { s.remotes.keep(life, f, first) })
		}
		select {
		case <-changed:
		case <-s.retired:
			return
		case <-ctx.Done():
			return
		}
	}
}

// announceProbe bounds the measurement of the round trip for the line that says ready, and
// announceAgain is when it is tried again.
const (
	announceProbe = 2 * time.Second
	announceAgain = time.Second
)

// announce says in one line that the session is up and every forward listens.
func (s *clientSession) announce(ctx context.Context) {
	select {
	case <-s.opened:
	case <-ctx.Done():
		return
	}
	for {
		remote, ok := s.awaitForwards(ctx)
		if !ok {
			return
		}
		if on := s.link.Carrier(); on != nil {
			if trip, ok := roundTrip(ctx, on); ok {
				s.ready(on, trip, remote)
				return
			}
		}
		if !sleep(ctx, announceAgain) {
			return
		}
	}
}

// ready logs that the session is up on a carrier, and where its forwards listen.
func (s *clientSession) ready(on link.Carrier, trip time.Duration, remote []string) {
	attrs := append([]any{keyServer, s.learner.Load().server}, carrierAttrs(on)...)
	if on, ok := on.(*carrier.Conn); ok && on.Mode() == carrier.ModeWebSocket { // the other kinds are there already
		attrs = append(attrs, keyCarrier, string(on.Mode()))
	}
	s.log.Info("ready", append(attrs, keyTrip, trip.Round(10*time.Microsecond),
		keyForwards, append(s.client.local.listening(), remote...))...)
}

// awaitForwards waits until the server listens for every remote forward, and returns
// where. It reports false when the session takes no new streams or ctx has ended.
func (s *clientSession) awaitForwards(ctx context.Context) (addresses []string, ok bool) {
	for {
		forwards, changed := s.client.remote.now()
		remote, answered := s.remotes.listening(forwards)
		if remote != nil {
			return remote, true
		}
		select {
		case <-answered:
		case <-changed:
		case <-s.retired:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}

// roundTrip measures how long the peer takes to answer on a carrier.
func roundTrip(ctx context.Context, on link.Carrier) (time.Duration, bool) {
	p, ok := on.(interface {
		Probe(ctx context.Context) error
	})
	if !ok {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, announceProbe)
	defer cancel()
	began := time.Now()
	err := p.Probe(ctx)
	return time.Since(began), err == nil
}

// serve dials the target of a connection that the server accepted, and returns
// what relays.
func (s *clientSession) serve(st stream) (relaying func()) {
	h := st.Header()
	if h.Kind != mux.KindForward {
		st.Refuse(mux.Denied, "this end dials for its own forwards only")
		return nil
	}
	target, err := s.remotes.target(st.Context(), h.Target)
	if err != nil {
		code, why := verdict(err, mux.Internal)
		st.Refuse(code, why)
		return nil
	}
	return serveTarget(&dialer{guard: s.client.guard, timeout: s.client.cfg.DialTimeout, memory: &s.client.addresses}, st, s.link.ID(), target, s.client.log, nil)
}
