package tunnel

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert/auth"
	"culvert/mux"
	"culvert/mux/link"
	"culvert/tunnel/audit"
)

// Events of the audit log; docs/audit.md says when each is written, and with which
// of the keys below.
const (
	auditLogin          = "login"
	auditLoginRefused   = "login_refused"
	auditUnconfirmed    = "login_unconfirmed"
	auditLoginEnded     = "login_ended"
	auditSessionOpened  = "session_opened"
	auditSessionResumed = "session_resumed"
	auditSessionMoved   = "session_moved"
	auditSessionRefused = "session_refused"
	auditSessionEnded   = "session_ended"
	auditStreamOpened   = "stream_opened"
	auditStreamDenied   = "stream_denied"
	auditStreamFailed   = "stream_failed"
	auditStreamEnded    = "stream_ended"
	auditListenOpened   = "listen_opened"
	auditListenDenied   = "listen_denied"
	auditListenFailed   = "listen_failed"
	auditListenEnded    = "listen_ended"
	auditReload         = "reload"
)

// Keys that the server's log does not have.
const (
	keyIdentity   = "identity"
	keyCredential = "credential"
	keyKind       = "kind"
	keyListener   = "listener"
	keyOrigin     = "from"
	keyRule       = "rule"
	keyBytesSent  = "bytes_sent"
	keyBytesRecv  = "bytes_received"
	keyDuration   = "duration"
	keyEnded      = "ended"
)

// maxAudited bounds what a peer says of itself, in bytes.
const maxAudited = 512

func auditText(key, text string) slog.Attr {
	if len(text) > maxAudited {
		text = text[:maxAudited] + "..."
	}
	return slog.String(key, text)
}

func auditError(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return auditText(keyError, err.Error())
}

// since is a duration in seconds.
func since(start time.Time) slog.Attr {
	return slog.Float64(keyDuration, time.Since(start).Round(time.Microsecond).Seconds())
}

// origin is a login and where it came from.
type origin struct {
	credential string
	remote     string
}

// origins are those of carriers and, through them, of sessions.
type origins struct {
	mu       sync.Mutex
	carriers map[link.Carrier]origin
	sessions map[*link.Link]origin
}

func (o *origins) carrier(c link.Carrier, from origin) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.carriers[c] = from
}

func (o *origins) carrierEnded(c link.Carrier) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.carriers, c)
}

// attached notes that l rides on c.
func (o *origins) attached(l *link.Link, c link.Carrier) {
	o.mu.Lock()
	defer o.mu.Unlock()
	from, ok := o.carriers[c]
	if ok && l.Err() == nil { // else one of them has been forgotten
		o.sessions[l] = from
	}
}

func (o *origins) session(l *link.Link) origin {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sessions[l]
}

func (o *origins) sessionEnded(l *link.Link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.sessions, l)
}

// account is what the audit log is told of one session. A nil account is told nothing.
type account struct {
	log      *audit.Log
	identity string
	session  string
	origin   func() origin
}

// who are the attributes of everything that the session does.
func (a *account) who() []slog.Attr {
	from := a.origin()
	return []slog.Attr{
		slog.String(keyIdentity, a.identity), slog.String(keyCredential, from.credential),
		slog.String(keyRemote, from.remote), slog.String(keySession, a.session),
	}
}

func (a *account) event(event string, attrs ...slog.Attr) {
	if a != nil {
		a.log.Event(event, append(a.who(), attrs...)...)
	}
}

// entry is what the audit log is told of one stream: first that it is served, or else
// why not, and then how it ended. A nil entry is told nothing.
type entry struct {
	account *account
	what    []slog.Attr // the same in all its lines
	opened  time.Time   // zero until it is served
}

// stream begins the entry of a stream that the client opens.
func (a *account) stream(id uint64, h mux.Header) *entry {
	if a == nil {
		return nil
	}
	kind := "local"
	if h.Kind == mux.KindTest {
		kind = "test"
	}
	return a.entry(slog.Uint64(keyStream, id), slog.String(keyKind, kind), auditText(keyTarget, h.Target))
}

// remoteStream begins the entry of a stream for a connection that the listener of a
// remote forward has accepted.
func (a *account) remoteStream(listener netip.AddrPort, from net.Addr) *entry {
	if a == nil {
		return nil
	}
	return a.entry(slog.String(keyKind, "remote"), slog.String(keyListener, listener.String()), slog.String(keyOrigin, from.String()))
}

func (a *account) entry(attrs ...slog.Attr) *entry {
	return &entry{account: a, what: append(a.who(), attrs...)}
}

// serve says that the stream is served, and why. Its end is to be said.
func (e *entry) serve(attrs ...slog.Attr) {
	if e == nil {
		return
	}
	e.what = append(e.what, attrs...)
	e.opened = time.Now()
	e.account.log.Event(auditStreamOpened, e.what...)
}

// refuse says why the stream is not served: it is denied by a rule, over a limit, or
// it could not be. There may be very many, so the caller asks floods before.
func (e *entry) refuse(err error) {
	if e == nil {
		return
	}
	event, attrs := refusal(err, auditStreamDenied, auditStreamFailed)
	e.account.log.Event(event, append(e.what, attrs...)...)
}

// end says that the stream has ended, if it was served: by what, and how many bytes
// went each way.
func (e *entry) end(cause error, sent, received int64) {
	if e == nil || e.opened.IsZero() {
		return
	}
	ended := auditEnd(cause)
	attrs := append(e.what,
		slog.Int64(keyBytesSent, sent), slog.Int64(keyBytesRecv, received),
		since(e.opened), slog.String(keyEnded, ended))
	if ended != endedClosed {
		attrs = append(attrs, auditError(cause))
	}
	e.account.log.Event(auditStreamEnded, attrs...)
}

// How streams and listeners end.
const (
	endedClosed  = "closed"
	endedReset   = "reset"
	endedLost    = "lost"
	endedRevoked = "revoked"
	endedLimit   = "limit"
	endedTaken   = "taken_over"
)

// auditEnd is the one word for how a stream ended.
func auditEnd(cause error) string {
	var e *mux.Error
	if !errors.As(cause, &e) {
		return endedClosed
	}
	switch e.Code {
	case mux.SessionLost:
		return endedLost
	case mux.Denied:
		return endedRevoked
	case mux.Limit, mux.OverBudget:
		return endedLimit
	default:
		return endedReset
	}
}

// refusal is one of two events, and what it was that decided.
func refusal(err error, denied, failed string) (event string, attrs []slog.Attr) {
	var d *auth.DeniedError
	var l *limitError
	event = denied
	switch {
	case errors.As(err, &d):
		attrs = append(attrs, slog.String(keyAddress, d.Addr.String()), slog.String(keyRule, d.Rule))
	case errors.As(err, &l):
		attrs = append(attrs, slog.String(keyLimit, l.limit))
	default:
		event = failed
	}
	return event, append(attrs, auditError(err))
}

func isLimit(err error) bool {
	var e *limitError
	return errors.As(err, &e)
}
