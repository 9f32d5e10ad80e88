package carrier

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// What a Conn can die of, apart from errors of the network, a [*CloseError] and
// whatever was given to [Conn.Abort]. After [Conn.Close] it is net.ErrClosed.
var (
	ErrHeartbeat       = errors.New("nothing heard from the peer within the heartbeat timeout")
	ErrMessageTooLarge = errors.New("message too large")
	ErrProtocol        = errors.New("WebSocket protocol violated by the peer")
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
	// ErrNotCulvert means that whatever answered is no culvert server.
	ErrNotCulvert = errors.New("not a culvert server")
)

// The tokens of the Culvert-Refusal header: why a client with a good credential
// was not let in.
const (
	RefusalGone      = "gone"      // the session to resume is not there any more
	RefusalLimit     = "limit"     // a limit on sessions is reached
	RefusalVersion   = "version"   // the hello's version is not spoken here
	RefusalMalformed = "malformed" // the hello cannot be read
	RefusalStopping  = "stopping"  // the server takes no new sessions
)

// Phase is the part of a dial that failed.
type Phase string

// The phases of a dial, in order.
const (
	PhaseSetup   Phase = "setup"   // reading the Dialer's fields; nothing was sent
	PhaseResolve Phase = "resolve" // host name to address
	PhaseConnect Phase = "connect" // TCP
	PhaseTLS     Phase = "tls"     // TLS handshake and the server's certificate
	PhaseUpgrade Phase = "upgrade" // HTTP request and its answer
	PhaseHello   Phase = "hello"   // the server's Culvert-Hello
)

// DialError is every error of [Dialer.Dial]: the phase, the address that was
// dialled ("host:port", as in the URL) and the cause.
type DialError struct {
	Phase Phase
	Addr  string
	Err   error
}

func (e *DialError) Error() string { return fmt.Sprintf("%s %s: %v", e.Phase, e.Addr, e.Err) }

func (e *DialError) Unwrap() error { return e.Err }

// RefusedError is an HTTP answer to the upgrade request that was not 101. Its
// strings come from the peer, or from somebody between, as they are: quote them
// before they are shown.
//
// It is [ErrUnauthorized] (in the sense of errors.Is) when the status is 401,
// and [ErrNotCulvert] when it has no Culvert-Refusal header and its status is
// none that servers and proxies give for a while or to the wrong people (403,
// 408, 425, 429, 5xx).
type RefusedError struct {
	Status   int    // HTTP status
	Token    string // of the Culvert-Refusal header; one of the Refusal constants, or unknown
	Location string // where a 3xx redirects to
	Server   string // the Server header
	Body     string // the first 200 bytes of the body
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
	if e.Token != "" {
		fmt.Fprintf(&b, ", refusal %q", e.Token)
	}
	if e.Server != "" {
		fmt.Fprintf(&b, " from %q", e.Server)
	}
	if e.Body != "" {
		fmt.Fprintf(&b, ": %q", e.Body)
	}
	if e.Is(ErrNotCulvert) {
		fmt.Fprintf(&b, ": %v", ErrNotCulvert)
	}
	return b.String()
}

// Is reports whether target is the sentinel that this answer stands for.
func (e *RefusedError) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized
	case ErrNotCulvert:
		if e.Token != "" || e.Status/100 == 5 {
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

// CloseError is a close frame that the peer sent (RFC 6455, 7.4).
type CloseError struct {
	Code   int
	Reason string // the peer's words; at most 123 bytes
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("closed by the peer with code %d %q", e.Code, e.Reason)
}

// Permanent reports whether dialling again the same way would fail the same way:
// the credential, the certificate or its key is wrong, a culvert server is not what
// answers, or a credential would travel in plaintext. Errors of the network and
// refusals that pass (a session that is gone, limits, restarts, 5xx) are not
// permanent, and neither is nil.
func Permanent(err error) bool {
	for _, target := range []error{ErrInvalidDialer, ErrPlaintextCredential, ErrUnauthorized, ErrNotCulvert} {
		if errors.Is(err, target) {
			return true
		}
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		switch refused.Token {
		case RefusalVersion, RefusalMalformed:
			return true
		case "":
			return refused.Status == http.StatusForbidden
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
