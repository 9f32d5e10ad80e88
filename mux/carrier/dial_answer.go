package carrier

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"culvert/mux/carrier/seal"
)

// site is what the server takes target for: its host is that of the request, which
// need not be that of the URL, and its scheme one of HTTP.
func (r *request) site(target *url.URL) *url.URL {
	site := *target
	site.Host = cmp.Or(r.header.Get("Host"), site.Host)
	site.Scheme = httpScheme(site.Scheme)
	return &site
}

func httpScheme(scheme string) string {
	switch scheme {
	case "ws":
		return "http"
	case "wss":
		return "https"
	}
	return scheme
}

// redirect changes target to location, and reports whether that is within the origin
// of site: the credential goes to no other, and the host, port and scheme of target
// stay as they are in any case.
func redirect(target, site *url.URL, location string) bool {
	to, err := site.Parse(location)
	if err != nil || location == "" || to.User != nil || origin(to) != origin(site) {
		return false
	}
	target.Path, target.RawPath, target.RawQuery = cmp.Or(to.Path, "/"), to.RawPath, to.RawQuery
	return true
}

// origin is what two URLs of the same origin (RFC 6454) have in common.
func origin(u *url.URL) string {
	scheme := httpScheme(u.Scheme)
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// redirectOf is where resp, which may be nil, redirects to.
func redirectOf(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return resp.Header.Get("Location")
	}
	return ""
}

// upgradeFailed makes of an error of websocket.Dial one that says what answered.
// sent are the secrets of the request; resp is nil if nothing answered, or no HTTP.
func upgradeFailed(ctx context.Context, k *cork, sent secrets, resp *http.Response, err error) error {
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		return refused(resp, sent)
	}
	if resp != nil {
		return fmt.Errorf("%w: it answers 101, but: %w", ErrNotCulvert, sent.hideError(err))
	}
	if answer := k.answered(); len(answer) > 0 && !bytes.HasPrefix(answer, []byte(http1)) {
		return notFrontHTTP(sent.hideCut(string(answer)))
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	err = because(ctx, sent.hideError(err))
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("connection closed without an answer: %w", err)
	}
	return err
}

// asksForToken reports whether an answer has the challenge Bearer (RFC 6750, 3), as every
// 401 of a culvert server has.
func asksForToken(h http.Header) bool {
	return slices.ContainsFunc(h.Values("Www-Authenticate"), func(challenge string) bool {
		scheme, _, _ := strings.Cut(challenge, " ")
		return strings.EqualFold(scheme, "Bearer")
	})
}

// refused makes an error of resp, and keeps out of it what was sent and is secret:
// a server may say it back.
func refused(resp *http.Response, sent secrets) *RefusedError {
	hello, _ := decodeHello(resp.Header)
	e := &RefusedError{
		hello:    string(hello),
		Status:   resp.StatusCode,
		Path:     sent.hide(cmp.Or(resp.Request.URL.Path, "/")),
		Token:    sent.hide(resp.Header.Get(refusalHeader)),
		Location: sent.hide(resp.Header.Get("Location")),
		Server:   sent.hide(resp.Header.Get("Server")),

		RetryAfter: retryAfter(resp, time.Now()),
		front:      resp.StatusCode == http.StatusUnauthorized && !asksForToken(resp.Header),
	}
	if e.Status == http.StatusRequestHeaderFieldsTooLarge {
		e.header = headerSize(resp.Request)
	}
	if resp.Body != nil { // the WebSocket library has read the beginning and closed it
		body, _ := io.ReadAll(resp.Body)
		hide := sent.hide
		if len(body) >= bodyRead {
			hide = sent.hideCut
		}
		text := strings.TrimSpace(hide(string(body)))
		e.Body = text[:min(len(text), maxRefusalBody)]
	}
	return e
}

// headerSize is about how many bytes the header of r has.
func headerSize(r *http.Request) int {
	n := len(r.Method) + len(r.URL.RequestURI())
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(": ") + len(value) + len("\r\n")
		}
	}
	return n
}

// answer looks at what over answers before http.Client and the WebSocket library do:
// the one would follow a redirect, or fail at one that leads nowhere, the other wait
// seconds for the body of a 101 that is not as it should be.
type answer struct {
	over http.RoundTripper

	sealing *seal.Sealing // of the request; nil: it is not sealed

	location []string      // kept from http.Client
	reply    []byte        // of a 101
	refused  *RefusedError // in a sealed 101; nil: it is not
	in, out  *seal.Cipher
}

func (a *answer) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.over.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	a.location = resp.Header["Location"]
	delete(resp.Header, "Location")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, nil
	}
	if a.reply, err = checkReply(resp.Header); err == nil && a.sealing != nil {
		if a.reply, a.in, a.out, err = a.sealing.Finish(a.reply); err == nil {
			a.reply, a.refused, err = openAnswer(a.reply)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", errReply, err)
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

var errReply = fmt.Errorf("%w: it answers 101", ErrNotCulvert)

// checkReply checks what of the answer 101 is ours, and returns the hello.
func checkReply(h http.Header) ([]byte, error) {
	if h.Get("Sec-WebSocket-Protocol") != Subprotocol {
		return nil, fmt.Errorf("%w, but not for %s", errReply, Subprotocol)
	}
	reply, err := decodeHello(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errReply, err)
	}
	return reply, nil
}
