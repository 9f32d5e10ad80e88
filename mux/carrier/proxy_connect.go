package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// connect has an HTTP proxy connect to target (RFC 9110, 9.3.6). The credential is
// sent when the proxy asks for it, or at once if an earlier dial had success with it.
//
// Each request has a connection of its own, since some proxies answer no second one
// on the connection of their 407, whatever they say about keeping it. Only NTLM
// needs the connection of its challenge.
func (p *forwardProxy) connect(ctx context.Context, target string) (net.Conn, error) {
	auth := &proxyAuth{proxyAccount: proxyAccount{p.addr, p.user, p.password}, target: target}
	var authorization string
	if p.credential {
		auth.memory = p.memory
		authorization = auth.recall()
	}
	for {
		h, err := p.open(ctx)
		if err != nil {
			return nil, err
		}
		authorization, err = p.converse(ctx, h, auth, authorization)
		if err != nil {
			h.close()
			return nil, hideIn(p.checkScheme(ctx, err), append(p.secrets(), auth.sent...))
		}
		if authorization == "" {
			return h.tunnel()
		}
		h.close()
	}
}

// converse asks for the tunnel on one connection. It returns the Proxy-Authorization
// to try on another connection, or "" if the tunnel is there.
func (p *forwardProxy) converse(ctx context.Context, h *proxyConn, auth *proxyAuth, authorization string) (next string, err error) {
	for {
		p.progress.waits("the answer of the proxy %s to CONNECT %s", p.addr, auth.target)
		bound := auth.bound()
		if bound && auth.alternative() {
			h.answerWithin(ctx)
		}
		resp, err := h.ask(auth.target, authorization, p.agent)
		switch {
		case err != nil && bound && ctx.Err() == nil && noAnswer(err):
			if next := auth.next(); next != "" {
				return next, nil
			}
			return "", err
		case err != nil:
			return "", err
		case resp.StatusCode/100 == 2:
			auth.accepted()
			return "", h.SetReadDeadline(time.Time{})
		}
		offered := challengesOf(resp.Header)
		if p.credential && resp.StatusCode == http.StatusProxyAuthRequired {
			authorization = auth.answer(offered)
		} else {
			authorization = ""
		}
		if authorization == "" {
			return "", p.refusal(resp, offered, auth)
		}
		if !auth.bound() {
			return authorization, nil
		}
		if !h.reusable(resp) {
			if next := auth.next(); next != "" {
				return next, nil
			}
			return "", fmt.Errorf("%s needs one connection for all of its messages, and the proxy closes it", auth.scheme())
		}
	}
}

// refusal is the error for an answer that leaves nothing to try.
func (p *forwardProxy) refusal(resp *http.Response, offered []string, auth *proxyAuth) *ProxyError {
	e := &ProxyError{
		Proxy: p.addr, Status: resp.StatusCode, Credential: p.credential, Server: resp.Header.Get("Server"),
		RetryAfter: retryAfter(resp, time.Now()),
	}
	if resp.StatusCode == http.StatusProxyAuthRequired || resp.StatusCode == http.StatusUnauthorized {
		e.Schemes = schemesOf(offered)
		if e.Tried = auth.tried(); e.Tried == "" {
			e.Stopped = auth.stopped
		}
	}
	e.hide(append(p.secrets(), auth.sent...))
	return e
}

// answerWithin leaves the proxy half of the time that ctx has left for its next
// answer, so that another scheme can be tried in the other half.
func (h *proxyConn) answerWithin(ctx context.Context) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = h.SetReadDeadline(time.Now().Add(time.Until(deadline) / 2))
	}
}

// noAnswer reports whether a proxy has ended the connection, or said nothing.
func noAnswer(err error) bool {
	return errors.Is(err, errNoProxyAnswer) || errors.Is(err, os.ErrDeadlineExceeded)
}

// errNoProxyAnswer means that a connection ended before the first byte of an answer.
var errNoProxyAnswer = errors.New("connection closed without an answer")

// ask sends a CONNECT request and reads the header of the answer, byte for byte
// no further than needed or kept in h.answers.
func (h *proxyConn) ask(target, authorization, agent string) (*http.Response, error) {
	request := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: target},
		Host:   target,
		Header: http.Header{"Proxy-Connection": {"keep-alive"}}, // for proxies of HTTP/1.0
	}
	if authorization != "" {
		request.Header.Set("Proxy-Authorization", authorization)
	}
	if agent != "" {
		request.Header.Set("User-Agent", agent)
	}
	if err := request.Write(h.Conn); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoProxyAnswer, err)
	}
	h.in.left = maxResponseHeader
	begin, err := h.answers.Peek(len(http1))
	switch {
	case len(begin) == 0:
		return nil, fmt.Errorf("%w: %w", errNoProxyAnswer, err)
	case string(begin) != http1:
		begin, _ = h.answers.Peek(min(h.answers.Buffered(), maxFirst))
		return nil, notProxyHTTP(string(begin))
	}
	resp, err := http.ReadResponse(h.answers, request)
	for err == nil && resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols { // the answer is yet to come; h.in bounds them
		resp, err = http.ReadResponse(h.answers, request)
	}
	switch {
	case err == nil:
		return resp, nil
	case errors.Is(h.in.err, errTooLong):
		return nil, fmt.Errorf("%w: it answers with a header of more than %d bytes", ErrNotProxy, maxResponseHeader)
	case h.in.err != nil:
		return nil, fmt.Errorf("in the middle of the answer: %w", h.in.err)
	}
	return nil, fmt.Errorf("%w: it answers with a malformed header", ErrNotProxy) // err quotes it, secrets and all
}

// reusable reads the body of a refusal to its end and says whether the next
// request may go over the same connection.
func (h *proxyConn) reusable(resp *http.Response) bool {
	defer resp.Body.Close()
	keep := !resp.Close
	for _, option := range strings.Split(resp.Header.Get("Proxy-Connection"), ",") {
		switch strings.ToLower(strings.TrimSpace(option)) {
		case "close":
			return false
		case "keep-alive":
			keep = true
		}
	}
	if !keep || resp.ContentLength < 0 && !slices.Contains(resp.TransferEncoding, "chunked") {
		return false // only the end of the connection would end the body
	}
	h.in.left = maxProxyBody
	_, err := io.Copy(io.Discard, resp.Body)
	return err == nil
}

// hideIn keeps secrets out of what err quotes.
func hideIn(err error, s secrets) error {
	if strange, ok := errors.AsType[*notHTTPError](err); ok {
		return notProxyHTTP(s.hideCut(strange.begin))
	}
	return err
}
