package link

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// RegistryConfig of a [Registry]. Zero limits mean none.
type RegistryConfig struct {
	Config
	MaxSessions    int // in all
	MaxPerIdentity int
	// MaxOf, if not nil, is a limit for one identity that may be lower than
	// MaxPerIdentity; 0 for none. It must not call the registry.
	MaxOf func(identity string) int
	// GroupOf, if not nil, is the group that an identity belongs to, with a limit for
	// the sessions of all its identities together; 0 for none. It must not call the
	// registry.
	GroupOf func(identity string) (group string, most int)
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
	handshakes  map[string]*allowance // of identities
	sweepAt     int                   // as many handshakes, and those that are unused go
	number      uint64                // of the last handshake
	stopped     bool
	// No sync.WaitGroup: a session may begin, or be resumed, while Wait waits.
	running int
	idle    *sync.Cond // running is 0
}

// session is a link that a registry knows.
type session struct {
	link     *Link
	identity string
	group    string
	opened   bool // Open was called; guarded by Registry.mu
}

// NewRegistry returns an empty registry.
func NewRegistry(cfg RegistryConfig) *Registry {
	cfg.Config = cfg.withDefaults()
	r := &Registry{
		cfg: cfg, log: cfg.Logger, sessions: map[SessionID]*session{}, perIdentity: map[string]int{},
		handshakes: map[string]*allowance{}, sweepAt: minSweep,
	}
	r.idle = sync.NewCond(&r.mu)
	return r
}

// Carriers of one session may displace each other displacements times at once, and then as
// often in each second: a client whose carriers are cut in quick succession is not kept
// waiting, and many that present the hello of one session are. Of an HTTP pipe that was
// cut the server learns from the next one only.
const displacements = 8

// An identity may shake hands four times as often at once as it may have sessions, but
// minHandshakes times in any case, and then a quarter of that in each second.
const (
	minHandshakes = 64
	minSweep      = 1024
)

// admission is the decision about a hello.
type admission struct {
	session   *session // nil: one that has yet to be made
	reply     reply
	number    uint64
	displaces bool // it may end a live carrier, which was counted
}

// Admit decides about an upgrade request with this hello, made by identity:
// it finds or makes the session in one step. On success the caller sends reply
// with the upgrade response and then calls exactly one of attach, which waits
// for the former carrier of the session to end, and cancel. The errors are
// [ErrMalformed], [ErrVersion], [ErrGone], [ErrLimit], [ErrBusy] and [ErrStopping].
//
// A session of another identity is reported like one that does not exist. A carrier
// is aborted if that of a later request was attached before it.
func (r *Registry) Admit(identity, remote string, secure bool, helloBytes []byte) (replyBytes []byte, attach func(Carrier), cancel func(), err error) {
	h, err := decodeHello(helloBytes)
	if err != nil {
		return nil, nil, nil, err
	}
	a, err := r.admit(identity, secure, h)
	if err != nil {
		return nil, nil, nil, err
	}
	attach = func(c Carrier) { r.attach(a, c, remote, h) }
	return a.reply.encode(), attach, func() { r.cancel(a.session) }, nil
}

// Consider is Admit for a request that may not be what it seems until its carrier is
// there, such as one that was recorded and is sent again: it finds and makes
// nothing yet, so that nothing comes of the reply alone. attach is called if it was
// in earnest, and admits then; the carrier is aborted if that has become impossible.
func (r *Registry) Consider(identity, remote string, secure bool, helloBytes []byte) (replyBytes []byte, attach func(Carrier), err error) {
	h, err := decodeHello(helloBytes)
	if err != nil {
		return nil, nil, err
	}
	told, err := r.look(identity, secure, h)
	if err != nil {
		return nil, nil, err
	}
	attach = func(c Carrier) {
		a, err := r.admit(identity, secure, h)
		if err == nil && a.reply.resumed != told.reply.resumed {
			r.cancel(a.session)
			err = ErrDisplaced // by another carrier with the same hello
		}
		if err != nil {
			r.log.Warn("carrier refused", "session", h.id, "remote", remote, "error", err)
			c.Abort(err)
			return
		}
		a.reply.beside = a.reply.beside && told.reply.beside
		a.number = told.number
		r.attach(a, c, remote, h)
	}
	return told.reply.encode(), attach, nil
}

// find finds the session that the hello is about, nil if it is a new one. Called with
// mu held.
func (r *Registry) find(identity string, h hello) (*session, error) {
	s, found := r.sessions[h.id]
	switch {
	case found && (s.identity != identity || s.link.over()):
		return nil, ErrGone
	case !found && h.resume:
		return nil, ErrGone
	case !found && r.stopped:
		return nil, ErrStopping
	}
	return s, nil
}

// over says whether there is nothing to resume any more.
func (l *Link) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || l.saidBye()
}

// look says what admit would, and changes nothing.
func (r *Registry) look(identity string, secure bool, h hello) (admission, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.find(identity, h)
	r.number++
	a := admission{session: s, number: r.number}
	switch {
	case err != nil:
		return admission{}, err
	case s != nil:
		a.reply = s.link.answer(h, secure)
		return a, nil
	case r.full(identity):
		if oldest, _ := r.oldest(identity); oldest == nil {
			return admission{}, ErrLimit
		}
	}
	a.reply = reply{secure: secure, maxMessage: uint32(r.cfg.MaxMessage), window: r.cfg.ResumeWindow}
	return a, nil
}

// admit finds or makes the session and claims it: attach or cancel must follow.
func (r *Registry) admit(identity string, secure bool, h hello) (admission, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.find(identity, h)
	if err != nil {
		return admission{}, err
	}
	handshakes, displaces := r.handshakesOf(identity), false
	switch now := time.Now(); {
	case !handshakes.left(now):
		err = ErrBusy
	case s != nil:
		displaces, err = s.link.admissible(h, now)
	case h.received > 0:
		err = fmt.Errorf("%w: %d bytes received in a new session", ErrMalformed, h.received)
	default:
		err = r.makeRoom(identity)
	}
	if err != nil {
		return admission{}, err
	}
	if s == nil {
		group, _ := r.groupOf(identity)
		s = &session{link: newLink(h.id, r.cfg.Config), identity: identity, group: group}
		s.link.displacing = &allowance{most: displacements, perSecond: displacements}
		r.sessions[h.id] = s
		r.perIdentity[identity]++
	}
	if s.link.claim() != nil {
		return admission{}, ErrGone
	}
	handshakes.take(time.Now())
	r.number++
	return admission{s, s.link.answer(h, secure), r.number, displaces}, nil
}

// handshakesOf is how often an identity may shake hands. Called with mu held.
func (r *Registry) handshakesOf(identity string) *allowance {
	if r.cfg.MaxPerIdentity <= 0 {
		return nil
	}
	a := r.handshakes[identity]
	if a == nil {
		if now := time.Now(); len(r.handshakes) >= r.sweepAt {
			maps.DeleteFunc(r.handshakes, func(_ string, a *allowance) bool { return a.unused(now) })
			r.sweepAt = max(minSweep, 2*len(r.handshakes))
		}
		most := float64(max(minHandshakes, 4*r.cfg.MaxPerIdentity))
		a = &allowance{most: most, perSecond: most / 4}
		r.handshakes[identity] = a
	}
	return a
}

// admissible says why a session that is known has no use for a carrier with this hello,
// or else whether that is counted as one that ends a live carrier.
func (l *Link) admissible(h hello, now time.Time) (displaces bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.out.check(l.peerReceived(h.received, h.beside)); err != nil {
		return false, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case l.att == nil && !l.attaching:
		return false, nil
	case h.beside && l.leaving == nil:
		return false, nil
	case h.beside: // what is under way on att would be lost
		return false, ErrBusy
	case !l.displacing.take(now):
		return false, ErrBusy
	}
	return true, nil
}

// answer is the reply to a hello for this session.
func (l *Link) answer(h hello, secure bool) reply {
	l.mu.Lock()
	defer l.mu.Unlock()
	return reply{
		resumed:    l.started,
		secure:     secure,
		beside:     h.beside && l.att != nil,
		received:   l.received,
		maxMessage: uint32(l.cfg.MaxMessage),
		window:     l.cfg.ResumeWindow,
	}
}

// attach ends what admit began: c is the carrier, after this hello and the reply.
func (r *Registry) attach(a admission, c Carrier, remote string, h hello) {
	t := terms{
		number:       a.number,
		peerReceived: h.received,
		maxMessage:   int(min(h.maxMessage, MaxMessage)),
		checksum:     !(a.reply.secure && h.secure),
		beside:       h.beside,
		gentle:       a.reply.beside,
		displaces:    a.displaces,
	}
	if !t.gentle {
		r.attachNow(a, c, remote, t)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.runLocked(func() {
		l := a.session.link
		var err error
		if t.first, err = l.prove(l.ended, c, t.checksum, false); err != nil {
			r.log.Warn("carrier refused", "session", l.ID(), "remote", remote, "error", err)
			r.cancel(a.session)
			return
		}
		r.attachNow(a, c, remote, t)
	})
}

func (r *Registry) attachNow(a admission, c Carrier, remote string, t terms) {
	s, l := a.session, a.session.link
	defer l.unclaim()
	att, gently, err := l.attach(c, t)
	if err != nil {
		r.log.Warn("carrier refused", "session", l.ID(), "remote", remote, "error", err)
		r.forget(l.id, s)
		return
	}
	switch {
	case gently:
		if r.cfg.Replaced != nil {
			r.cfg.Replaced(l, s.identity, c)
		}
	case r.cfg.Attached != nil:
		r.cfg.Attached(l, s.identity, a.reply.resumed, c)
	}
	r.open(l.id, s, remote, att)
}

// cancel ends what admit began when there is no carrier.
func (r *Registry) cancel(s *session) {
	s.link.unclaim()
	r.forget(s.link.id, s)
}

// open starts the session's goroutine with its first carrier, and watches each
// carrier for its loss.
func (r *Registry) open(id SessionID, s *session, remote string, att *attachment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Lost != nil {
		r.runLocked(func() {
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
	r.runLocked(func() {
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
	if !r.full(identity) {
		return nil
	}
	oldest, oldestID := r.oldest(identity)
	if oldest == nil {
		return ErrLimit
	}
	oldest.abandon(ErrLimit)
	delete(r.sessions, oldestID)
	if r.perIdentity[identity]--; r.perIdentity[identity] == 0 {
		delete(r.perIdentity, identity)
	}
	if r.full(identity) {
		return ErrLimit
	}
	return nil
}

// full says whether there is no room for one more session of identity. Called with mu
// held.
func (r *Registry) full(identity string) bool {
	most := r.cfg.MaxPerIdentity
	if r.cfg.MaxOf != nil {
		if own := r.cfg.MaxOf(identity); own > 0 && (most <= 0 || own < most) {
			most = own
		}
	}
	return r.cfg.MaxSessions > 0 && len(r.sessions) >= r.cfg.MaxSessions ||
		most > 0 && r.perIdentity[identity] >= most || r.groupFull(identity)
}

func (r *Registry) groupOf(identity string) (group string, most int) {
	if r.cfg.GroupOf == nil {
		return "", 0
	}
	return r.cfg.GroupOf(identity)
}

// groupFull is full for the group of identity. Called with mu held.
func (r *Registry) groupFull(identity string) bool {
	group, most := r.groupOf(identity)
	if most <= 0 {
		return false
	}
	n := 0
	for _, s := range r.sessions {
		if s.group == group {
			n++
		}
	}
	return n >= most
}

// oldest is the session of identity that has been without a carrier for longest, nil
// if there is none. Called with mu held.
func (r *Registry) oldest(identity string) (oldest *Link, oldestID SessionID) {
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
	return oldest, oldestID
}

// Stop refuses new sessions with [ErrStopping]. Those that are there may still
// be resumed, so that their streams can finish.
func (r *Registry) Stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
}

// Wait waits until every session has ended. Call Stop before. An upgrade that is under
// way may still bring one; who has ended those calls Wait once more.
func (r *Registry) Wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.running > 0 {
		r.idle.Wait()
	}
}

// runLocked runs f on a goroutine that Wait waits for.
func (r *Registry) runLocked(f func()) {
	r.running++
	go func() {
		f()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.running--; r.running == 0 {
			r.idle.Broadcast()
		}
	}()
}

// Len is the number of sessions, those without a carrier included.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}
