package carrier

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"culvert/mux/carrier/seal"
)

// What a Conn can die of, apart from errors of the network, a [*CloseError] and
// whatever was given to [Conn.Abort]. After [Conn.Close] it is net.ErrClosed.
var (
	ErrHeartbeat       = errors.New("nothing heard from the peer within the heartbeat timeout")
	ErrMessageTooLarge = errors.New("message too large")
	ErrProtocol        = errors.New("WebSocket protocol violated by the peer")
	// ErrSeal means that a sealed message, or the handshake of one end, is not what
	// the other end has sent: it was changed, left out or played again on the way.
	ErrSeal = seal.ErrBroken
)

// What a [Dialer] can be refused by, beside a [*RefusedError], a
// [*CertificateError], a [*PinError] and errors of the network and of TLS.
var (
	// ErrInvalidDialer means a Dialer whose fields make no request.
	ErrInvalidDialer = errors.New("invalid dialer")
	// ErrPlaintextCredential means that a credential would have crossed a
	// network unencrypted. Nothing was sent.
	ErrPlaintextCredential = errors.New("credential over plaintext to a host that is not loopback")
	// ErrUnauthorized means that the server answered 401.
	ErrUnauthorized = errors.New("credential not accepted")
	// ErrFrontUnauthorized means that somebody in front of the server answered 401: it
	// wants a credential of its own.
	ErrFrontUnauthorized = errors.New("a proxy in front of the server wants a user name and a password, or others")
	// ErrNotCulvert means that whatever answered is no culvert server.
	ErrNotCulvert = errors.New("not a culvert server")
	// ErrSeveralServers means that requests of one HTTP pipe were answered by
	// different culvert servers.
	ErrSeveralServers = errors.New("HTTP requests of one carrier reach different servers")
	// ErrNotProxy means that whatever answered at a proxy's address is no proxy of
	// the kind that its URL says.
	ErrNotProxy = errors.New("not such a proxy")
	// ErrHTTP2Only means that whatever answered, a front or a proxy, sent HTTP/2 frames,
	// or takes no other protocol for TLS. Carriers need HTTP/1.1.
	ErrHTTP2Only = errors.New("speaks HTTP/2 only; culvert needs HTTP/1.1")
	// ErrProxyCredential means that a proxy wants a credential, or another one.
	ErrProxyCredential = errors.New("proxy credential missing or not accepted")
)

// The tokens of the Culvert-Refusal header: why a client with a good credential
// was not let in.
const (
	RefusalGone      = "gone"      // the session to resume is not there any more
	RefusalLimit     = "limit"     // a limit on sessions is reached
	RefusalVersion   = "version"   // the hello's version is not spoken here
	RefusalMalformed = "malformed" // the hello cannot be read
	RefusalStopping  = "stopping"  // the server takes no new sessions
	RefusalSeal      = "seal"      // the request is sealed, and the server has no key
)

// Phase is the part of a dial that failed.
type Phase string

// The phases of a dial, in order.
const (
	PhaseSetup   Phase = "setup"   // reading the Dialer's fields; nothing was sent
	PhaseResolve Phase = "resolve" // host name to address
	PhaseConnect Phase = "connect" // TCP
	PhaseProxy   Phase = "proxy"   // through a forward proxy: all that leads to its tunnel, names and TCP included
	PhaseTLS     Phase = "tls"     // TLS handshake and the server's certificate
	PhaseUpgrade Phase = "upgrade" // HTTP request and its answer
	PhaseHello   Phase = "hello"   // the server's Culvert-Hello
)

// DialError is every error of [Dialer.Dial]: the phase, the address that was
// dialled ("host:port", as in the URL; in PhaseProxy that of the proxy) and the
// cause.
type DialError struct {
	Phase Phase
	Addr  string
	Err   error
}

func (e *DialError) Error() string {
	if _, ok := e.Err.(*ProxyError); ok { //nolint:errorlint // it says the address itself
		return fmt.Sprintf("%s: %v", e.Phase, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Phase, e.Addr, e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// RefusedError is an HTTP answer to the upgrade request that was not 101. Its
// strings come from the peer, or from somebody between, as they are: quote them
// before they are shown.
//
// It is [ErrUnauthorized] (in the sense of errors.Is) when the status is 401, but
// [ErrFrontUnauthorized] if the answer does not ask for a bearer token as every server does,
// and [ErrNotCulvert] when it has no Culvert-Refusal header and its status is
// none that servers and proxies give for a while or to the wrong people (403,
// 408, 425, 429, 5xx), nor one about the form of the request, which they give before
// they look at the path (400, 411, 413, 414, 417, 431).
type RefusedError struct {
	Status   int    // HTTP status
	Path     string // that was asked for
	Token    string // of the Culvert-Refusal header; one of the Refusal constants, or unknown
	Location string // where a 3xx redirects to
	Server   string // the Server header
	Body     string // the first 200 bytes of the body

	// RetryAfter is how long the Retry-After header of a 429 or 503 asks to wait
	// (RFC 9110, 10.2.3), an hour at most; 0: it does not.
	RetryAfter time.Duration

	front  bool   // a 401 without the challenge that every culvert server makes
	hello  string // of the Culvert-Hello header, decoded; "" for none
	header int    // of an answer 431: about how many bytes the request's header had
}

func (e *RefusedError) Error() string {
	var b strings.Builder
	if e.Location != "" && e.Status/100 == 3 {
		fmt.Fprintf(&b, "redirected to %q (status %d)", e.Location, e.Status)
	} else {
		fmt.Fprintf(&b, "answered %d", e.Status)
		if text := http.StatusText(e.Status); text != "" {
			b.WriteString(" " + text)
		}
	}
	if e.Status == http.StatusNotFound {
		fmt.Fprintf(&b, " for the path %q", e.Path)
	}
	if e.Token != "" {
		fmt.Fprintf(&b, ", refusal %q", e.Token)
	}
	if e.Server != "" {
		fmt.Fprintf(&b, " from %q", e.Server)
	}
	if e.Body != "" {
		fmt.Fprintf(&b, ": %q", e.Body)
	}
	if e.Status == http.StatusRequestHeaderFieldsTooLarge {
		fmt.Fprintf(&b, ": the request has a header of about %d bytes, which is more than it accepts", e.header)
	}
	if e.Is(ErrFrontUnauthorized) {
		fmt.Fprintf(&b, ": %v", ErrFrontUnauthorized)
	}
	if e.Is(ErrNotCulvert) {
		fmt.Fprintf(&b, ": %v", ErrNotCulvert)
		if e.Status/100 != 3 {
			b.WriteString(", or the credential is not accepted (a stealthy server says no more)")
		}
	}
	return b.String()
}

// maxRetryAfter bounds how long a Retry-After header can keep a client away.
const maxRetryAfter = time.Hour

// retryAfter is how long resp asks to wait.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}

// RetryAfter is how long the server or a proxy that refused a dial asks to wait
// before the next one, an hour at most; 0: it does not ask.
func RetryAfter(err error) time.Duration {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.RetryAfter
	}
	if refused, ok := errors.AsType[*ProxyError](err); ok {
		return refused.RetryAfter
	}
	return 0
}

// Is reports whether target is the sentinel that this answer stands for.
func (e *RefusedError) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized && !e.front
	case ErrFrontUnauthorized:
		return e.Status == http.StatusUnauthorized && e.front
	case ErrNotCulvert:
		if e.Token != "" || e.Status/100 == 5 || e.malformed() {
			return false
		}
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout,
			http.StatusTooEarly, http.StatusTooManyRequests:
			return false
		}
		return true
	}
	return false
}

// malformed reports whether the answer is about the form of the request, whoever gave
// it: it will be the same for the next request like it.
func (e *RefusedError) malformed() bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusLengthRequired, http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong,
		http.StatusExpectationFailed, http.StatusRequestHeaderFieldsTooLarge:
		return true
	}
	return false
}

// SchemeError means that a server or a proxy speaks TLS where its URL says that it does
// not, or the other way round. Nothing secret was sent without TLS that was to be sent
// with it.
type SchemeError struct {
	Scheme string // of the URL
	Use    string // the scheme that fits
}

func (e *SchemeError) Error() string {
	if e.Scheme == "wss" || e.Scheme == "https" {
		return fmt.Sprintf("it speaks plain HTTP on this port, not TLS: use %s:// instead of %s://", e.Use, e.Scheme)
	}
	return fmt.Sprintf("it speaks TLS on this port: use %s:// instead of %s://", e.Use, e.Scheme)
}

// ProxyError is a forward proxy's refusal to connect. Server and Schemes come
// from the proxy as they are: quote them before they are shown. No credential is
// in it, whatever the proxy said.
//
// It is [ErrProxyCredential] (in the sense of errors.Is) when the status is 407, or
// 401 after the credential was sent, as Tinyproxy answers, or when a SOCKS proxy takes none of the ways to authenticate, or not the password.
type ProxyError struct {
	Proxy      string   // host:port
	Status     int      // of HTTP; 0 from a SOCKS proxy
	Reply      byte     // of SOCKS (RFC 1928, 6); 0 from an HTTP proxy, and about the credential
	Schemes    []string // how an HTTP proxy that answers 407 wants the credential, 8 at most
	Credential bool     // there is one
	Tried      string   // the scheme in which the proxy got the password, "" for none
	Stopped    string   // the scheme that the proxy did not go on with before it got the password, "" for none
	Server     string   // the Server header

	RetryAfter time.Duration // as in a RefusedError
}

func (e *ProxyError) Error() string {
	var b strings.Builder
	switch {
	case e.Status != 0:
		fmt.Fprintf(&b, "%d", e.Status)
		if text := http.StatusText(e.Status); text != "" {
			b.WriteString(" " + text)
		}
	case e.Reply != 0:
		fmt.Fprintf(&b, "SOCKS reply %d", e.Reply)
		if text := socksReplies[e.Reply]; text != "" {
			b.WriteString(", " + text + ",")
		}
	default:
		b.WriteString("SOCKS authentication refused")
	}
	fmt.Fprintf(&b, " from the proxy %s", e.Proxy)
	if e.Server != "" {
		fmt.Fprintf(&b, " (%q)", e.Server)
	}
	if e.Is(ErrProxyCredential) {
		switch {
		case !e.Credential:
			b.WriteString(": it wants a user name and a password")
		case e.Stopped != "":
			fmt.Fprintf(&b, ": it did not answer the first NTLM message with a challenge that is understood here (%s), so it was not given the password", e.Stopped)
		case e.Tried == "":
			b.WriteString(": it takes the credential in none of the ways known here (Digest, NTLM, Basic)")
		default:
			fmt.Fprintf(&b, ": user name or password not accepted (%s)", e.Tried)
		}
		if len(e.Schemes) > 0 {
			fmt.Fprintf(&b, ", offered: %q", e.Schemes)
		}
	}
	return b.String()
}

// Is reports whether target is the sentinel that this refusal stands for.
func (e *ProxyError) Is(target error) bool {
	return target == ErrProxyCredential &&
		(e.Status == http.StatusProxyAuthRequired || e.Status == http.StatusUnauthorized && e.Tried != "" ||
			e.Status == 0 && e.Reply == 0)
}

// permanent reports whether the proxy would say the same again: what it forbids
// and what it does not understand, not what it could not reach.
func (e *ProxyError) permanent() bool {
	switch e.Status {
	case 0: // SOCKS: the credential, the ruleset, the command, the type of address
		return e.Reply == 0 || e.Reply == 2 || e.Reply == 7 || e.Reply == 8
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return e.Status/100 != 5
}

// hide keeps s out of what the proxy said.
func (e *ProxyError) hide(s secrets) {
	e.Server = s.hide(e.Server)
	for i, scheme := range e.Schemes {
		e.Schemes[i] = s.hide(scheme)
	}
}

// CloseError is a close frame that the peer sent (RFC 6455, 7.4).
type CloseError struct {
	Code   int
	Reason string // the peer's words; at most 123 bytes
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("closed by the peer with code %d %q", e.Code, e.Reason)
}

// FromAgent reports whether Code is one that culvert's agents send. A middlebox that
// closes a WebSocket because of its own limits uses others, such as 1001.
func (e *CloseError) FromAgent() bool {
	switch e.Code {
	case closeNormal, closeProtocol, closeUnsupported, closePolicy, closeTooBig:
		return true
	}
	return false
}

// Permanent reports whether dialling again the same way would fail the same way:
// the credential, the certificate, a key or the URL's scheme is wrong, a culvert server
// or a proxy is not what answers, or does not accept the form of the request, the proxy forbids it, or a credential would travel in plaintext.
// Errors of the network and refusals that pass (a session that is gone, limits,
// restarts, 5xx, a server that the proxy cannot reach) are not permanent, and
// neither is nil.
func Permanent(err error) bool {
	for _, target := range []error{ErrInvalidDialer, ErrPlaintextCredential, ErrUnauthorized, ErrFrontUnauthorized, ErrNotCulvert, ErrNotProxy, ErrHTTP2Only} {
		if errors.Is(err, target) {
			return true
		}
	}
	if _, ok := errors.AsType[*KeyError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*SchemeError](err); ok {
		return true
	}
	if refused, ok := errors.AsType[*ProxyError](err); ok {
		return refused.permanent()
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		switch refused.Token {
		case RefusalVersion, RefusalMalformed, RefusalSeal:
			return true
		case "":
			return refused.Status == http.StatusForbidden || refused.malformed()
		}
		return false
	}
	return badCertificate(err)
}

func badCertificate(err error) bool {
	if _, ok := errors.AsType[*PinError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok
}
