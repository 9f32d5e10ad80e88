package carrier

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"culvert/mux/carrier/seal"
)

const (
	helloHeader = "Culvert-Hello"
	// authorizationHeader is another place for the client's credential: Authorization
	// may belong to what stands in front of the server. With noCredential in it, the
	// client has none.
	authorizationHeader = "Culvert-Authorization"
	noCredential        = "none"
	refusalHeader       = "Culvert-Refusal"
	// heartbeatHeader says how often the client pings, in whole seconds.
	heartbeatHeader = "Culvert-Heartbeat"

	// maxHello is the largest hello in bytes, before it is encoded, and
	// maxSealedHello if it is sealed.
	maxHello       = 1024
	maxSealedHello = maxHello + seal.MaxHello
	// maxHeartbeat is the longest that a client can ask a server for: so long it
	// keeps a client that has vanished.
	maxHeartbeat = 2 * time.Hour
	// maxToken is the longest credential of a client in bytes: signed tokens with many
	// claims are long.
	maxToken = 16 << 10
)

// maxBearer is the longest bearer token in bytes, which may be a sealed credential.
var maxBearer = helloEncoding.EncodedLen(seal.MaxHello)

var errHello = errors.New("malformed " + helloHeader + " header")

// Strict: there is one encoding of each hello, so two parties cannot read the
// same header differently.
var helloEncoding = base64.RawURLEncoding.Strict()

func encodeHello(hello []byte) string { return helloEncoding.EncodeToString(hello) }

// decodeHello reads the one hello of a request or answer.
func decodeHello(h http.Header) ([]byte, error) {
	values := h.Values(helloHeader)
	if len(values) != 1 {
		return nil, fmt.Errorf("%w: %d of them", errHello, len(values))
	}
	v := values[0]
	if len(v) > helloEncoding.EncodedLen(maxSealedHello) {
		return nil, fmt.Errorf("%w: more than %d bytes", errHello, maxSealedHello)
	}
	if strings.ContainsAny(v, "\r\n") { // which package base64 skips
		return nil, fmt.Errorf("%w: line break", errHello)
	}
	hello, err := helloEncoding.DecodeString(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHello, err)
	}
	if len(hello) > maxHello && !seal.IsHello(hello) {
		return nil, fmt.Errorf("%w: more than %d bytes", errHello, maxHello)
	}
	return hello, nil
}

func encodeHeartbeat(interval time.Duration) string {
	return strconv.FormatInt(int64((interval+time.Second-1)/time.Second), 10)
}

// decodeHeartbeat returns the heartbeat that the request asks for, 0 for none.
func decodeHeartbeat(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get(heartbeatHeader), 10, 31)
	if err != nil {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxHeartbeat)
}

// BearerToken returns the token of the request's Culvert-Authorization header or, if there
// is none, of its Authorization header (RFC 6750, 2.1), and whether there is exactly one such header and it holds a token of the
// scheme Bearer, no longer than a sealed credential (some 22 KiB). It and [BasicPassword] are the only
// places where a credential is read from a request.
func BearerToken(r *http.Request) (token string, ok bool) {
	scheme, token := authorization(r)
	if !strings.EqualFold(scheme, "Bearer") || !validToken(token, maxBearer) {
		return "", false
	}
	return token, true
}

// BasicPassword returns the user and the password of the request's Culvert-Authorization
// header or, if there is none, of its Authorization header (RFC 7617), and whether there is exactly one such header and it holds both,
// of the scheme Basic and in no more than 16 KiB; only the password may be empty.
func BasicPassword(r *http.Request) (user, password string, ok bool) {
	scheme, encoded := authorization(r)
	if !strings.EqualFold(scheme, basicScheme) || !validToken(encoded, maxToken) {
		return "", "", false
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return "", "", false
	}
	user, password, ok = strings.Cut(string(decoded), ":")
	if !ok || !validUser(user) || !validPassword(password) {
		return "", "", false
	}
	return user, password, true
}

// HasAuthorization reports whether the request has a header for a credential, whatever
// is in it, unless the client says there that it has no credential.
func HasAuthorization(r *http.Request) bool { return len(authorizations(r)) > 0 }

// authorizations are the values that count as the client's credential: those of
// Culvert-Authorization or, without any, those of Authorization. With both, Authorization
// is for somebody in front of the server, and means nothing here.
func authorizations(r *http.Request) []string {
	switch own := r.Header.Values(authorizationHeader); {
	case len(own) == 1 && own[0] == noCredential:
		return nil
	case len(own) > 0:
		return own
	}
	return r.Header.Values("Authorization")
}

// authorization is the one credential of the request, "" if there is none or more.
func authorization(r *http.Request) (scheme, value string) {
	values := authorizations(r)
	if len(values) != 1 {
		return "", ""
	}
	scheme, value, _ = strings.Cut(values[0], " ")
	return scheme, strings.Trim(value, " ")
}

// Basic is a user and a password as [Dialer.Credential] may return them. A user that
// is empty or has a colon in it, and control characters, make a credential that no
// Dialer sends.
func Basic(user, password string) string { return basicScheme + " " + basic(user, password) }

// validUser and validPassword are what can be sent with Basic.
func validUser(user string) bool {
	return user != "" && !strings.Contains(user, ":") && validPassword(user)
}

func validPassword(password string) bool {
	return !strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// validToken reports whether token, of at most the given length, can stand in the
// header: printable ASCII without spaces, which is wider than RFC 6750's b64token and as
// unambiguous.
func validToken(token string, most int) bool {
	if token == "" || len(token) > most {
		return false
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return true
}
