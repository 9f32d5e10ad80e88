package carrier

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"culvert/mux/carrier/seal"
)

// Handler makes carriers as a server. Use it with [Server], or with another
// http.Server that leaves Hijack to it.
//
// A request that is not an upgrade of ours to the right path is Other's. An upgrade
// with an Origin is answered 403, and one without a good credential 401, unless Stealth
// makes them Other's too: nothing that only this program would say.
type Handler struct {
	// Path is the one path that is served, matched exactly. Default "/". Inside of an
	// HTTP pipe, whose own requests have it, the path does not matter.
	Path string

	// Other answers what is not ours, as the web server that a stranger sees. It has as
	// long as bytes go on moving, 30 s apart at most; the time-outs of a [Server] do not
	// cut it. Of requests that look like ours it sees neither the credential nor our
	// headers; with Stealth it sees them, unless the credential is a good one. Nil means
	// http.NotFound.
	Other http.Handler

	// Stealth makes upgrades with a wrong credential, or with an Origin that is not
	// allowed, Other's. The credential is then checked on every path, so that the right
	// one takes no longer, and in every request that looks like ours.
	Stealth bool

	// AllowOrigins are those that a request of ours may have, compared exactly; none
	// is served with another. It may do without in any case.
	AllowOrigins []string

	// Authenticate says who the client is. It should use [BearerToken] and
	// [BasicPassword] and compare in constant time. A [*Refusal] is the answer; any
	// other error is answered with 401. Nil lets everybody in, as the zero Client.
	Authenticate func(r *http.Request) (Client, error)

	// Challenges are the values of WWW-Authenticate in a 401. Nil means "Bearer".
	Challenges func() []string

	// Key opens what clients have sealed for its owner; nil: sealed requests are
	// answered like those with a wrong credential. Authenticate is given the
	// request as its client meant it: with the Authorization that was sealed, and
	// with [PeerKey].
	Key *ecdh.PrivateKey

	// Refused, if there is one, is told why a sealed request cannot be opened. Such a
	// request never gets to Authenticate.
	Refused func(r *http.Request, err error)

	// Introduce tells everybody who asks what the public key of Key is.
	Introduce bool

	// HandshakeTimeout bounds the wait for the first message of a sealed carrier,
	// before which it is not attached. Default 10 s.
	HandshakeTimeout time.Duration

	// Admit decides on an authenticated client before the upgrade, and must not
	// block for long. A [*Refusal] is the answer, to a sealed request inside of a 101 that
	// looks like any other; any other error is logged and answered with 500. Required.
	Admit func(Request) (Admission, error)

	// Logger gets a debug line for each request that is refused, and an error for
	// each that Admit fails on. Nil discards them.
	Logger *slog.Logger

	Options
}

// Client is who sent a request.
type Client struct {
	Identity string // what pipes and sessions are bound to
	Login    any    // whatever else Authenticate has to tell Admit
}

// Request is what a client with a good credential asks.
type Request struct {
	Client
	Remote string // address of the client, "host:port", as far as it is known
	Secure bool   // over TLS, or sealed
	// Sealed says that the request may be one that was recorded and is played
	// again. Nothing that lasts may come of it before Attach is called.
	Sealed bool
	Hello  []byte // at most 1024 bytes

	confirmation *confirmation // nil: it is not sealed
}

// OnConfirmed has f called once, when it is known whether the client has sealed the
// request itself: at once if it is not sealed, and otherwise when the client has
// confirmed it, before Attach, or has not. It is for Admit.
func (r Request) OnConfirmed(f func(confirmed bool)) {
	if r.confirmation == nil {
		f(true)
		return
	}
	r.confirmation.waiting = append(r.confirmation.waiting, f)
}

// confirmation is who wants to know whether a request was confirmed.
type confirmation struct{ waiting []func(confirmed bool) }

func (c *confirmation) is(confirmed bool) {
	for _, f := range c.waiting {
		f(confirmed)
	}
}

// Admission is the answer to a Request that is accepted.
type Admission struct {
	// Reply is sent with the 101; at most 1024 bytes.
	Reply []byte
	// Attach is given the carrier, which is then the callee's to end. It must not
	// block, neither on the carrier's peer nor for long. Required.
	Attach func(*Conn)
	// Cancel, if there is one, is called instead of Attach when the upgrade
	// failed.
	Cancel func()
}

// Refusal is an error of Handler.Admit: why a client with a good credential is
// not let in. As one of Handler.Authenticate it has no token: it is told to strangers.
type Refusal struct {
	Status int           // HTTP status, 400 or more
	Token  string        // for the Culvert-Refusal header; one of the Refusal constants, or "" for none
	Text   string        // one line for people, sent as the body
	Again  time.Duration // for the Retry-After header, in whole seconds; 0: none
}

// write answers with e. Whoever is to come again later need not keep the connection.
func (e *Refusal) write(w http.ResponseWriter) {
	if e.Token != "" {
		w.Header().Set(refusalHeader, e.Token)
	}
	if e.Again > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.Again/time.Second)))
		w.Header().Set("Connection", "close")
	}
	http.Error(w, e.Text, e.Status)
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("refused with %d, %s: %s", e.Status, e.Token, e.Text)
}

// ServeHTTP upgrades the request, or serves it as one of an HTTP pipe if a [Server]
// got it, or refuses it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ask, piped := parsePipe(r)
	set, served := r.Context().Value(pipesKey{}).(*pipes)
	piped = piped && served
	asked := isUpgrade(r) || piped
	// A front sees the path of a pipe's requests, and may rewrite it, but not that of
	// the upgrade inside. The pipe is open, so its requests had the right path.
	here := insidePipe(r) || r.URL.Path == cmp.Or(h.Path, "/")
	allowed := h.allowed(r)
	var client Client
	var opened *seal.Opened
	var err error
	hide := !h.Stealth // from Other, what is ours
	if asked && allowed && here || h.Stealth && looksOurs(r.Header) {
		var meant *http.Request
		opened, meant, err = h.open(w, r, piped || !asked && r.Header.Get(helloHeader) == "")
		switch {
		case err != nil:
			if h.Refused != nil && !errors.Is(err, errQuestion) {
				h.Refused(r, err)
			}
		case h.Authenticate != nil:
			client, err = h.Authenticate(meant)
			if err != nil && piped && h.Key == nil && looksVouched(r) {
				err = fmt.Errorf("%w: %w", err, errNoKey)
			}
		}
		hide = hide || err == nil
	}
	switch {
	case !asked || !here:
		h.debug(r, "not an upgrade", nil)
		h.other(w, r, hide)
		return
	case !allowed:
		h.debug(r, "origin", nil)
		h.refuse(w, r, hide, http.StatusForbidden, nil)
		return
	case err != nil:
		h.debug(r, "credential", err)
		h.refuse(w, r, hide, http.StatusUnauthorized, err)
		return
	}

	if piped {
		h.servePipe(w, r, set, ask, client.Identity)
		return
	}

	// Who has sealed a request has yet to show that.
	if opened == nil && !claim(r, client.Identity) {
		h.debug(r, "not admitted", errConnections)
		(&Refusal{Status: http.StatusServiceUnavailable, Token: RefusalLimit, Text: errConnections.Error()}).write(w)
		return
	}
	var confirmation confirmation
	admission, err := h.admit(r, client, opened, &confirmation)
	refusal, refused := errors.AsType[*Refusal](err)
	switch {
	case refused:
		h.debug(r, "not admitted", err)
		if opened == nil {
			refusal.write(w)
			return
		}
	case err != nil:
		h.log(slog.LevelError, r, "not admitted", err)
		confirmation.is(false)
		http.Error(w, "Internal Server Error", http.StatusInternalServerError)
		return
	}

	reply := admission.Reply
	if opened != nil { // whoever plays the request again is not to learn what becomes of it
		reply = sealedAnswer(reply, refusal)
	}
	conn, err := h.upgrade(w, r, reply, opened)
	if err == nil && opened != nil {
		err = h.confirmed(r.Context(), conn, client.Identity)
	}
	confirmation.is(err == nil)
	if err != nil {
		h.debug(r, "upgrade", err)
		if admission.Cancel != nil {
			admission.Cancel()
		}
		return
	}
	if refused {
		_ = conn.Close("")
		return
	}
	admission.Attach(conn)
}

// refuse says no to a stranger, or nothing: then hide is for other. An err that is a
// [*Refusal] is the answer.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, hide bool, status int, err error) {
	if h.Stealth {
		h.other(w, r, hide)
		return
	}
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		refusal.write(w)
		return
	}
	if status == http.StatusUnauthorized {
		challenges := []string{"Bearer"}
		if h.Challenges != nil {
			challenges = h.Challenges()
		}
		w.Header()["Www-Authenticate"] = challenges
	}
	http.Error(w, http.StatusText(status), status)
}

func (h *Handler) admit(r *http.Request, client Client, opened *seal.Opened, c *confirmation) (Admission, error) {
	hello, err := decodeHello(r.Header)
	if opened != nil {
		if hello = opened.Hello; len(hello) > maxHello {
			err = fmt.Errorf("%w: more than %d bytes", errHello, maxHello)
		}
	}
	if err != nil {
		return Admission{}, &Refusal{Status: http.StatusBadRequest, Token: RefusalMalformed, Text: err.Error()}
	}
	request := Request{
		Client: client,
		Remote: r.RemoteAddr,
		Secure: r.TLS != nil || opened != nil,
		Hello:  hello,
	}
	if opened != nil {
		request.Sealed, request.confirmation = true, c
	}
	return h.Admit(request)
}

// upgrade answers 101 and returns the carrier. On an error it has answered what
// there is to answer.
func (h *Handler) upgrade(w http.ResponseWriter, r *http.Request, reply []byte, opened *seal.Opened) (c *Conn, err error) {
	var in, out *seal.Cipher
	if opened != nil {
		if reply, in, out, err = opened.Answer(reply); err != nil {
			http.Error(w, "Internal Server Error", http.StatusInternalServerError)
			return nil, err
		}
	}
	w.Header().Set(helloHeader, encodeHello(reply))
	hw := &hijackWriter{ResponseWriter: w}
	var pinged func(context.Context, []byte) bool // set before anything is read
	ws, err := websocket.Accept(hw, r, &websocket.AcceptOptions{
		Subprotocols:   []string{Subprotocol},
		OnPingReceived: func(ctx context.Context, p []byte) bool { return pinged(ctx, p) },
		// We have, by our list; the library would compare it with the Host.
		InsecureSkipVerify: true,
	})
	if err != nil {
		return nil, err
	}
	opt := h.Options.withDefaults()
	opt.Heartbeat = max(opt.Heartbeat, decodeHeartbeat(r.Header)) // the client keeps idle middleboxes open
	c = newConn(hw.cork, opt, r.TLS != nil)
	c.remote = r.RemoteAddr // beyond trusted proxies
	pinged = c.pinged
	if opened != nil {
		c.sealWith(in, out)
	}
	c.start(ws)
	return c, nil
}

func (h *Handler) debug(r *http.Request, reason string, err error) {
	h.log(slog.LevelDebug, r, reason, err)
}

func (h *Handler) log(level slog.Level, r *http.Request, reason string, err error) {
	if h.Logger == nil {
		return
	}
	attrs := []slog.Attr{
		slog.String("reason", reason), slog.String("remote", r.RemoteAddr), slog.String("path", r.URL.Path),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	h.Logger.LogAttrs(r.Context(), level, "request refused", attrs...)
}

// allowed reports whether r is no browser's, or one's on a page that may ask.
func (h *Handler) allowed(r *http.Request) bool {
	origin, ok := oneHeader(r.Header, "Origin")
	return ok && slices.Contains(h.AllowOrigins, origin) || len(r.Header.Values("Origin")) == 0
}

// isUpgrade reports whether r is the upgrade of version 1, so that the WebSocket
// library will not have to refuse it, which it does in its own words.
func isUpgrade(r *http.Request) bool {
	key := r.Header.Values("Sec-WebSocket-Key")
	if len(key) != 1 {
		return false
	}
	nonce, err := base64.StdEncoding.DecodeString(strings.TrimSpace(key[0]))
	return err == nil && len(nonce) == 16 &&
		r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && r.ProtoMajor == 1 && r.ContentLength == 0 &&
		hasToken(r.Header, "Connection", "Upgrade") &&
		hasToken(r.Header, "Upgrade", "websocket") &&
		r.Header.Get("Sec-WebSocket-Version") == "13" &&
		slices.Contains(headerTokens(r.Header, "Sec-WebSocket-Protocol"), Subprotocol)
}

func hasToken(h http.Header, key, token string) bool {
	return slices.ContainsFunc(headerTokens(h, key), func(t string) bool { return strings.EqualFold(t, token) })
}

func headerTokens(h http.Header, key string) []string {
	tokens := strings.Split(strings.Join(h.Values(key), ","), ",")
	for i, t := range tokens {
		tokens[i] = strings.TrimSpace(t)
	}
	return tokens
}

// hijackWriter gives the WebSocket library a cork for the connection.
type hijackWriter struct {
	http.ResponseWriter
	cork *cork // set by Hijack
}

const (
	// writeBuffer holds a frame's header and any control frame; the cork does the
	// gathering.
	writeBuffer = 256
	readBuffer  = 4 << 10
)

func (w *hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// http.Server's time-outs.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, nil, err
	}
	found := findWire(conn)
	if found == nil && !isTLS(conn) { // a pipe, or another http.Server than ours
		found = newWire(conn)
		conn = found
	}
	w.cork = newCork(conn, false)
	w.cork.prefix, _ = rw.Reader.Peek(rw.Reader.Buffered()) // rw is not used again
	return w.cork, bufio.NewReadWriter(
		bufio.NewReaderSize(w.cork, readBuffer),
		bufio.NewWriterSize(w.cork, writeBuffer),
	), nil
}

// isTLS reports whether conn is TLS, and so can find the conn below itself.
func isTLS(conn net.Conn) bool {
	_, ok := conn.(interface{ NetConn() net.Conn })
	return ok
}
