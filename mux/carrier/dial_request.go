package carrier

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// request is what all upgrade requests of one Dial have in common.
type request struct {
	header  http.Header // without the hello
	hello   []byte
	secrets secrets       // of the header
	guarded bool          // it may go to loopback only
	front   bool          // Authorization is for somebody in front of the server
	proxy   *forwardProxy // to send it through; nil: straight
	// progress is that of the Dial; nil: nobody is told.
	progress *progress
	tickets  *tickets // of TLS; nil: none are kept
	// forwarded says that the proxy passes requests on, without a tunnel, and basic
	// that it is given its credential with each of them.
	forwarded, basic bool

	seal          *Seal  // nil: not sealed
	authorization string // that travels sealed, and not in the header; "" for none
}

// request checks the fields and returns the request without the hello. It is part of
// a Dial that makes progress, or of none if that is nil.
func (d *Dialer) request(progress *progress) (*request, error) {
	if err := d.checkAddress(); err != nil {
		return nil, err
	}
	r := &request{header: http.Header{}, progress: progress}
	if d.TLS != nil && d.TLS.ClientSessionCache != nil {
		r.tickets = &tickets{cache: d.TLS.ClientSessionCache}
	}
	if err := r.add(d.Header); err != nil {
		return nil, err
	}
	if d.SecretHeader != nil {
		progress.waits("the secret headers")
		header, err := d.SecretHeader()
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		if err := r.add(header); err != nil {
			return nil, err
		}
		for _, values := range header {
			for _, v := range values {
				r.guarded = true
				r.hide(v, minSecret)
				r.hide(afterScheme(v), minSecret)
			}
		}
	}
	for _, v := range r.header["Authorization"] { // of somebody in front of the server
		r.guarded, r.front = true, true
		r.hide(afterScheme(v), 1)
		if _, password, ok := BasicPassword(&http.Request{Header: http.Header{"Authorization": {v}}}); ok {
			r.hide(password, minSecret)
		}
	}
	if d.Credential != nil {
		progress.waits("the credential")
		credential, err := d.Credential()
		if err != nil {
			return nil, fmt.Errorf("credential: %w", err)
		}
		value, err := r.authorize(credential)
		switch {
		case err != nil:
			return nil, err
		case value == "":
		case d.Seal != nil:
			r.authorization = value
		default:
			r.guarded = true
			r.header.Set(r.credentialHeader(), value)
		}
	}
	if r.front && r.header.Get(authorizationHeader) == "" {
		r.header.Set(authorizationHeader, noCredential) // Authorization would be taken for the client's
	}
	r.guarded = r.guarded && !d.secure() && !d.AllowPlaintext
	if host, _, _ := net.SplitHostPort(d.addr()); r.guarded && !loopbackHost(host) {
		return nil, fmt.Errorf("%w: %q", ErrPlaintextCredential, host)
	}
	var err error
	r.proxy, err = d.proxy(r)
	return r, err
}

// credentialHeader is the header for the client's credential: Authorization, unless that
// is for somebody in front of the server.
func (r *request) credentialHeader() string {
	if r.front {
		return authorizationHeader
	}
	return "Authorization"
}

// authorize returns what the header for the credential says, "" without a credential, and
// keeps the credential out of errors.
func (r *request) authorize(credential string) (value string, err error) {
	if credential == "" {
		return "", nil
	}
	value = "Bearer " + credential
	if strings.HasPrefix(credential, basicScheme+" ") {
		value = credential
	}
	asked := &http.Request{Header: http.Header{"Authorization": {value}}}
	if _, password, ok := BasicPassword(asked); ok {
		r.hide(password, minSecret)
	} else if _, ok := BearerToken(asked); !ok || len(credential) > maxToken {
		return "", fmt.Errorf("%w: credential with a space, a character outside of ASCII or more than %d bytes, or no user and password",
			ErrInvalidDialer, maxToken)
	}
	r.hide(afterScheme(value), 1)
	return value, nil
}

func (d *Dialer) checkAddress() error {
	if d.URL == nil {
		return fmt.Errorf("%w: no URL", ErrInvalidDialer)
	}
	switch d.URL.Scheme {
	case "ws", "wss", "http", "https":
	default:
		return fmt.Errorf("%w: URL scheme %q is not ws or wss", ErrInvalidDialer, d.URL.Scheme)
	}
	if d.URL.Hostname() == "" {
		return fmt.Errorf("%w: URL without a host", ErrInvalidDialer)
	}
	if d.URL.User != nil {
		return fmt.Errorf("%w: URL with a user name or password", ErrInvalidDialer)
	}
	if _, _, err := net.SplitHostPort(d.Address); d.Address != "" && err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidDialer, err)
	}
	switch d.Mode {
	case "", ModeAuto, ModeWebSocket, ModeHTTP:
		return nil
	default:
		return fmt.Errorf("%w: mode %q", ErrInvalidDialer, d.Mode)
	}
}

// add adds what a caller may set.
func (r *request) add(header http.Header) error {
	for name, values := range header {
		if !validField(name, values) {
			return fmt.Errorf("%w: header %q", ErrInvalidDialer, name)
		}
		name = http.CanonicalHeaderKey(name) // whatever the spelling, it goes out
		if name == "Origin" || name == "Connection" || name == "Upgrade" ||
			strings.HasPrefix(name, "Sec-Websocket-") || strings.HasPrefix(name, "Culvert-") {
			return fmt.Errorf("%w: header %q is not the caller's to set", ErrInvalidDialer, name)
		}
		r.header[name] = append(r.header[name], values...)
	}
	return nil
}

// hide keeps a secret of at least so many bytes out of errors.
func (r *request) hide(secret string, least int) {
	if len(secret) >= least {
		r.secrets = append(r.secrets, secret)
	}
}

// afterScheme is the value of an Authorization or the like without its scheme,
// which is no secret.
func afterScheme(value string) string {
	value = strings.TrimSpace(value)
	if _, after, ok := strings.Cut(value, " "); ok {
		return strings.TrimSpace(after)
	}
	return value
}

// validField reports whether net/http would send the header field.
func validField(name string, values []string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	control := func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
	return name != "" && !slices.ContainsFunc(values, func(v string) bool { return strings.ContainsFunc(v, control) })
}

func loopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
