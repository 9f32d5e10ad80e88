package link

import (
	"errors"
	"log/slog"
	"sync"
)

// RegistryConfig of a [Registry]. Zero limits mean none.
type RegistryConfig struct {
	Config
	MaxSessions    int // in all
	MaxPerIdentity int
	// MaxOf, if not nil, is a limit for one identity that may be lower than
	// MaxPerIdentity; 0 for none. It must not call the registry.
	MaxOf func(identity string) int
	// Open runs a new session on l until the session has ended; l was opened
	// by identity from remote. It is called on a goroutine of its own as soon
	// as the first carrier is attached. When it returns, l is closed if it is
	// still open.
	Open func(l *Link, identity, remote string)
	// Attached, if not nil, is told of each carrier of a session, the first
	// included, and Lost of its loss; but Replaced, if not nil, of one that
	// follows another without a break.
	Attached func(l *Link, identity string, resumed bool, c Carrier)
	Lost     func(l *Link, identity string, err error)
	Replaced func(l *Link, identity string, c Carrier)
}

// Registry is the server's end of all sessions. It finds the one that a client
// wants to resume and bounds their number.
type Registry struct {
	cfg RegistryConfig
	log *slog.Logger

	mu          sync.Mutex
	sessions    map[SessionID]*session
	perIdentity map[string]int
	stopped     bool
	running     sync.WaitGroup
}

// session is a link that a registry knows.
type session struct {
	link     *Link
	identity string
	opened   bool // Open was called; guarded by Registry.mu
}

// NewRegistry returns an empty registry.
func NewRegistry(cfg RegistryConfig) *Registry {
	cfg.Config = cfg.withDefaults()
	return &Registry{cfg: cfg, log: cfg.Logger, sessions: map[SessionID]*session{}, perIdentity: map[string]int{}}
}

// Admit decides about an upgrade request with this hello, made by identity:
// it finds or makes the session in one step. On success the caller sends reply
// with the upgrade response and then calls exactly one of attach, which waits
// for the former carrier of the session to end, and cancel. The errors are
// [ErrMalformed], [ErrVersion], [ErrGone], [ErrLimit] and [ErrStopping].
//
// A session of another identity is reported like one that does not exist.
func (r *Registry) Admit(identity, remote string, secure bool, helloBytes []byte) (replyBytes []byte, attach func(Carrier), cancel func(), err error) {
	h, err := decodeHello(helloBytes)
	if err != nil {
		return nil, nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s, found := r.sessions[h.id]
	switch {
	case found && (s.identity != identity || s.link.claim() != nil):
		return nil, nil, nil, ErrGone
	case !found && h.resume:
		return nil, nil, nil, ErrGone
	case !found && r.stopped:
		return nil, nil, nil, ErrStopping
	case !found:
		if err := r.makeRoom(identity); err != nil {
			return nil, nil, nil, err
		}
		s = &session{link: newLink(h.id, r.cfg.Config), identity: identity}
		_ = s.link.claim() // a new link has not ended
		r.sessions[h.id] = s
		r.perIdentity[identity]++
	}

	l := s.link
	l.mu.Lock()
	rep := reply{
		resumed:    l.started,
		secure:     secure,
		beside:     h.beside && l.att != nil && l.leaving == nil,
		received:   l.received,
		maxMessage: uint32(l.cfg.MaxMessage),
		window:     l.cfg.ResumeWindow,
	}
	l.mu.Unlock()
	t := terms{
		peerReceived: h.received,
		maxMessage:   int(min(h.maxMessage, MaxMessage)),
		checksum:     !(secure && h.secure),
		beside:       h.beside,
		gentle:       rep.beside,
	}
	attach = func(c Carrier) {
		defer l.unclaim()
		att, gently, err := l.attach(c, t)
		if err != nil {
			r.log.Warn("carrier refused", "session", l.ID(), "remote", remote, "error", err)
			r.forget(h.id, s)
			return
		}
		switch {
		case gently:
			if r.cfg.Replaced != nil {
				r.cfg.Replaced(l, identity, c)
			}
		case r.cfg.Attached != nil:
			r.cfg.Attached(l, identity, rep.resumed, c)
		}
		r.open(h.id, s, remote, att)
	}
	cancel = func() {
		l.unclaim()
		r.forget(h.id, s)
	}
	return rep.encode(), attach, cancel, nil
}

// open starts the session's goroutine with its first carrier, and watches each
// carrier for its loss.
func (r *Registry) open(id SessionID, s *session, remote string, att *attachment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Lost != nil {
		r.running.Go(func() {
			<-att.lost
			if s.link.Err() == nil && !errors.Is(att.err, ErrReplaced) {
				r.cfg.Lost(s.link, s.identity, att.err)
			}
		})
	}
	if s.opened {
		return
	}
	s.opened = true
	r.running.Go(func() {
		if r.cfg.Open != nil {
			r.cfg.Open(s.link, s.identity, remote)
			s.link.Close("session ended")
		}
		<-s.link.Done()
		s.link.Wait()
		r.remove(id, s)
	})
}

// forget removes a session whose first carrier never came.
func (r *Registry) forget(id SessionID, s *session) {
	r.mu.Lock()
	opened := s.opened
	r.mu.Unlock()
	if !opened {
		s.link.Close("no carrier")
		r.remove(id, s)
	}
}

func (r *Registry) remove(id SessionID, s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[id] != s {
		return
	}
	delete(r.sessions, id)
	if r.perIdentity[s.identity]--; r.perIdentity[s.identity] == 0 {
		delete(r.perIdentity, s.identity)
	}
}

// makeRoom checks the limits for one more session of identity. A client that
// was restarted again and again is not locked out by what it left behind: at
// the limit the session of the same identity that has been without a carrier
// for longest is ended. Called with mu held.
func (r *Registry) makeRoom(identity string) error {
	most := r.cfg.MaxPerIdentity
	if r.cfg.MaxOf != nil {
		if own := r.cfg.MaxOf(identity); own > 0 && (most <= 0 || own < most) {
			most = own
		}
	}
	full := func() bool {
		return r.cfg.MaxSessions > 0 && len(r.sessions) >= r.cfg.MaxSessions ||
			most > 0 && r.perIdentity[identity] >= most
	}
	if !full() {
		return nil
	}
	var oldest *Link
	var oldestID SessionID
	for id, s := range r.sessions {
		if s.identity != identity {
			continue
		}
		if since, ok := s.link.detachedSince(); ok {
			if oldest == nil {
				oldest, oldestID = s.link, id
			} else if other, _ := oldest.detachedSince(); since.Before(other) {
				oldest, oldestID = s.link, id
			}
		}
	}
	if oldest == nil {
		return ErrLimit
	}
	oldest.abandon(ErrLimit)
	delete(r.sessions, oldestID)
	if r.perIdentity[identity]--; r.perIdentity[identity] == 0 {
		delete(r.perIdentity, identity)
	}
	if full() {
		return ErrLimit
	}
	return nil
}

// Stop refuses new sessions with [ErrStopping]. Those that are there may still
// be resumed, so that their streams can finish.
func (r *Registry) Stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
}

// Wait waits until every session has ended. Call Stop before.
func (r *Registry) Wait() { r.running.Wait() }

// Len is the number of sessions, those without a carrier included.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}
