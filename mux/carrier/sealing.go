package carrier

import (
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"culvert/mux/carrier/seal"
)

// SealOverhead is by how many bytes a message of a sealed carrier is longer on the
// wire.
const SealOverhead = seal.Overhead

// Seal says for whom a [Dialer] seals its carriers: from there on, only the two
// agents see what is in them, whoever ends TLS in between.
type Seal struct {
	// Server is the server's public key (X25519).
	Server [32]byte
	// Where says where that was found, for errors; "" if it does not matter.
	Where string
	// Key is the client's own, and then its only credential. Nil: the one of
	// Dialer.Credential is, which travels sealed.
	Key *ecdh.PrivateKey
}

// Fingerprint is the server's public key as people compare it.
func (s Seal) Fingerprint() string { return fingerprint(s.Server) }

// KeyError means that a server has shown another key than the one it is known by:
// somebody may stand in its place.
type KeyError struct {
	Known, Shown [32]byte
	Where        string // where the known one was found, "" for nowhere
}

func (e *KeyError) Error() string {
	where := ""
	if e.Where != "" {
		where = " (" + e.Where + ")"
	}
	return fmt.Sprintf("THE SERVER'S KEY IS NOT THE KNOWN ONE: it shows %s, known is %s%s; somebody may stand in between, or the server has a new key",
		fingerprint(e.Shown), fingerprint(e.Known), where)
}

// fingerprint is a public key as people compare it.
func fingerprint(key [32]byte) string {
	sum := sha256.Sum256(key[:])
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// content is what the request's first message says beside the key.
func (r *request) content(hello []byte) seal.Content {
	if r.seal.Key != nil {
		return seal.Content{Owned: true, Hello: hello}
	}
	return seal.Content{Authorization: r.authorization, Hello: hello}
}

// sayHello adds the hello to header, sealed if it is to be, and then anew at each call.
func (r *request) sayHello(header http.Header) (*seal.Sealing, error) {
	if r.seal == nil {
		header.Set(helloHeader, encodeHello(r.hello))
		return nil, nil //nolint:nilnil // nothing to be opened
	}
	sealing, b, err := seal.Hello(r.seal.Key, r.seal.Server, r.content(r.hello))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidDialer, err)
	}
	header.Set(helloHeader, encodeHello(b))
	return sealing, nil
}

// vouch gives the requests of a pipe, if it is for a sealed carrier, a credential that
// shows nobody the client's.
func (r *request) vouch(p *clientPipe) error {
	if r.seal == nil {
		return nil
	}
	b, err := seal.Voucher(r.seal.Key, r.seal.Server, r.content(nil))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidDialer, err)
	}
	voucher := encodeHello(b)
	p.header.Set(r.credentialHeader(), "Bearer "+voucher)
	p.secrets = append(p.secrets[:len(p.secrets):len(p.secrets)], voucher)
	return nil
}

// confirm sends the first sealed message, which is empty: only who has sealed the
// request can. On an error the Conn has ended.
func (c *Conn) confirm(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.Abort(context.Cause(ctx)) })
	sent, err := c.WriteMessages([]byte{})
	if err == nil && !sent {
		err = c.Flush()
	}
	if !stop() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		c.Abort(err)
		_ = c.Close("")
	}
	return err
}

var errUnconfirmed = errors.New("a sealed request was not confirmed in time")

// confirmed waits for that message, with which c counts as one of the identity. On an
// error c has ended.
func (h *Handler) confirmed(ctx context.Context, c *Conn, identity string) error {
	timeout := h.HandshakeTimeout
	if timeout <= 0 {
		timeout = defaultHandshakeTimeout
	}
	late := time.AfterFunc(timeout, func() { c.Abort(errUnconfirmed) })
	defer late.Stop()
	defer context.AfterFunc(ctx, func() { c.Abort(context.Cause(ctx)) })()
	var b [SealOverhead]byte
	n, err := c.ReadMessage(b[:])
	switch {
	case err == nil && n > 0:
		err = ErrProtocol
	case err == nil && c.cork.wire != nil && !c.cork.wire.counted.claim(identity):
		err = errConnections
	}
	if err != nil {
		c.Abort(err)
		_ = c.Close("")
	}
	return err
}

// leastAnswer is how long the content of a sealed answer is at least: longer than every
// reply and refusal of this program, so that its length does not tell them apart.
const leastAnswer = 128

// sealedAnswer is the content of the answer to a sealed request: the status in two bytes,
// the length of what follows in two, and the reply, or of a refusal its token, a space and
// its text. The rest is 0.
func sealedAnswer(reply []byte, refusal *Refusal) []byte {
	status := http.StatusSwitchingProtocols
	if refusal != nil {
		status, reply = refusal.Status, []byte(refusal.Token+" "+refusal.Text)
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, leastAnswer), uint16(status))
	b = binary.BigEndian.AppendUint16(b, uint16(len(reply)))
	b = append(b, reply...)
	return append(b, make([]byte, max(leastAnswer-len(b), 0))...)
}

var errAnswer = errors.New("malformed sealed answer")

// openAnswer reads it.
func openAnswer(b []byte) (reply []byte, refused *RefusedError, err error) {
	if len(b) < 4 || len(b)-4 < int(binary.BigEndian.Uint16(b[2:])) {
		return nil, nil, errAnswer
	}
	status, content := int(binary.BigEndian.Uint16(b)), b[4:][:binary.BigEndian.Uint16(b[2:])]
	switch {
	case status == http.StatusSwitchingProtocols:
		return content, nil, nil
	case status < 400 || status > 599:
		return nil, nil, errAnswer
	}
	token, text, _ := strings.Cut(string(content), " ")
	return nil, &RefusedError{Status: status, Token: token, Body: text[:min(len(text), maxRefusalBody)]}, nil
}

// peerKey is the context's key of a [PeerKey].
type peerKey struct{}

// PeerKey returns the public key with which a client has sealed the request that it
// sends as its credential, and whether there is one. The client of an upgrade has
// shown that it has the private key when Admission.Attach is called, not before; that
// of an HTTP pipe's request never does.
func PeerKey(r *http.Request) (key [32]byte, ok bool) {
	key, ok = r.Context().Value(peerKey{}).([32]byte)
	return key, ok
}

var (
	errNoKey    = &Refusal{Status: http.StatusBadRequest, Token: RefusalSeal, Text: "this server has no key to open sealed requests with"}
	errQuestion = errors.New("the client asks for the server's key")
)

// open opens a sealed request and returns it as its client meant it; opened is nil if
// it is an upgrade that is not sealed, or one of a pipe. A client that asks for the
// server's key finds it in the header of w.
func (h *Handler) open(w http.ResponseWriter, r *http.Request, piped bool) (opened *seal.Opened, meant *http.Request, err error) {
	if piped {
		if h.Key == nil || !looksVouched(r) {
			return nil, r, nil
		}
		token, _ := BearerToken(r)
		b, _ := helloEncoding.DecodeString(token)
		if opened, err = seal.OpenVoucher(h.Key, b); err != nil { // a token may look like one
			return nil, r, nil //nolint:nilerr // it opens nothing, as itself
		}
		return nil, unsealed(r, opened), nil
	}
	b, err := decodeHello(r.Header)
	switch {
	case err != nil: // which is told to who has a credential
		return nil, r, nil //nolint:nilerr // see above
	case seal.IsQuestion(b):
		if h.Introduce && h.Key != nil {
			if answer, err := seal.Introduce(h.Key, b); err == nil {
				w.Header().Set(helloHeader, encodeHello(answer))
			}
		}
		return nil, r, errQuestion
	case !seal.IsHello(b):
		return nil, r, nil
	case h.Key == nil:
		return nil, r, errNoKey
	}
	if opened, err = seal.OpenHello(h.Key, b); err != nil {
		return nil, r, err
	}
	return opened, unsealed(r, opened), nil
}

// looksVouched reports whether the token of a pipe's request may be a sealed
// credential. An ordinary token may look like one.
func looksVouched(r *http.Request) bool {
	token, _ := BearerToken(r)
	b, err := helloEncoding.DecodeString(token)
	return err == nil && seal.IsVoucher(b)
}

// unsealed is r with what was sealed, in place of anything like it that was not.
func unsealed(r *http.Request, opened *seal.Opened) *http.Request {
	ctx := r.Context()
	if opened.Owned {
		ctx = context.WithValue(ctx, peerKey{}, opened.Key)
	}
	meant := r.Clone(ctx)
	meant.Header.Del("Authorization")
	meant.Header.Del(authorizationHeader)
	if opened.Authorization != "" {
		meant.Header.Set("Authorization", opened.Authorization)
	}
	return meant
}

// AskKey asks the server for its public key, as somebody who has no credential. That
// the server has the private key is certain; that it is the server is not, and is for
// people to say. A server may be told not to answer; that is a [*RefusedError].
func (d *Dialer) AskKey(ctx context.Context) (key [32]byte, err error) {
	question, b, err := seal.Ask()
	if err != nil {
		return key, err
	}
	asking := *d
	asking.Credential, asking.Seal, asking.Mode = nil, nil, ModeWebSocket
	c, _, err := asking.Dial(ctx, b)
	if err == nil {
		c.Abort(ErrNotCulvert)
		_ = c.Close("")
		return key, &DialError{PhaseHello, d.addr(), ErrNotCulvert}
	}
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.hello == "" {
		return key, err
	}
	if key, err = question.Key([]byte(refused.hello)); err != nil {
		return key, &DialError{PhaseHello, d.addr(), err}
	}
	return key, nil
}

// explain adds to the error of a sealed Dial what may be wrong with the server's key:
// a server whose key it is not cannot tell the request from any other.
func (d *Dialer) explain(ctx context.Context, r *request, err error) error {
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Token != "" || !Permanent(err) {
		return err
	}
	if errors.Is(err, ErrUnauthorized) {
		if key, askErr := d.AskKey(ctx); askErr == nil && key != r.seal.Server {
			return &DialError{PhaseHello, d.addr(), &KeyError{Known: r.seal.Server, Shown: key, Where: r.seal.Where}}
		}
	}
	if dial, ok := errors.AsType[*DialError](err); ok {
		dial.Err = fmt.Errorf("%w (sealed for a server with the key %s)", dial.Err, r.seal.Fingerprint())
	}
	return err
}
