package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// connect has an HTTP proxy connect to target (RFC 9110, 9.3.6). The credential
// is not sent until the proxy has said in which way it wants it.
func (p *forwardProxy) connect(ctx context.Context, target string) (net.Conn, error) {
	auth := proxyAuth{user: p.user, password: p.password, target: target}
	var h *proxyConn
	defer func() {
		if h != nil {
			h.close()
		}
	}()
	var authorization string
	for {
		kept := h != nil
		if !kept {
			var err error
			if h, err = p.open(ctx); err != nil {
				return nil, err
			}
		}
		resp, err := h.ask(target, authorization, p.agent)
		switch {
		case err != nil && kept && !auth.bound() && ctx.Err() == nil && errors.Is(err, errNoProxyAnswer):
			h.close() // it was not kept after all
			h = nil
			continue
		case err != nil:
			return nil, hideIn(err, append(p.secrets(), auth.sent...))
		case resp.StatusCode/100 == 2:
			tunnel := h
			h = nil
			return tunnel.tunnel()
		}
		offered := challengesOf(resp.Header)
		refused := &ProxyError{Proxy: p.addr, Status: resp.StatusCode, Credential: p.credential, Server: resp.Header.Get("Server")}
		if resp.StatusCode == http.StatusProxyAuthRequired {
			refused.Schemes = schemesOf(offered)
			if p.credential {
				authorization = auth.answer(offered)
				refused.Tried = auth.scheme
			} else {
				authorization = ""
			}
		}
		if resp.StatusCode != http.StatusProxyAuthRequired || authorization == "" {
			refused.hide(append(p.secrets(), auth.sent...))
			return nil, refused
		}
		if !h.reusable(resp) {
			if auth.bound() {
				return nil, fmt.Errorf("%s, which belongs to a connection, and the proxy closes it", auth.scheme)
			}
			h.close()
			h = nil
		}
	}
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
	begin, err := h.answers.Peek(len("HTTP/"))
	switch {
	case len(begin) == 0:
		return nil, fmt.Errorf("%w: %w", errNoProxyAnswer, err)
	case string(begin) != "HTTP/":
		begin, _ = h.answers.Peek(min(h.answers.Buffered(), maxFirst))
		return nil, &garbage{string(begin)}
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

// garbage is an answer that is not HTTP, with its first bytes.
type garbage struct{ begin string }

func (g *garbage) Error() string {
	return fmt.Sprintf("%v: it answers %q, which is not HTTP", ErrNotProxy, g.begin)
}

func (g *garbage) Unwrap() error { return ErrNotProxy }

// hideIn keeps secrets out of what err quotes.
func hideIn(err error, s secrets) error {
	if g, ok := errors.AsType[*garbage](err); ok {
		return &garbage{s.hideCut(g.begin)}
	}
	return err
}
