package carrier

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstWait is how long a poll waits at the server at first, which is less
	// than boxes between usually wait for an answer; each that is cut halves it.
	firstWait = 10 * time.Second
	minWait   = 250 * time.Millisecond
	// firstCalm is how long polls must not be cut before one waits longer again. Each
	// time that this was too long for what is between doubles it, up to longestCalm.
	firstCalm   = time.Minute
	longestCalm = time.Hour
	// helloWait is the same until the first byte has come, so that a dial notices in time
	// that its requests reach several servers: one that nothing was written to has
	// nothing to say.
	helloWait = 2 * time.Second
	// pipeRetries is how often a request is sent again in a row.
	pipeRetries = 3
	// probePatience is how long a probe may take.
	probePatience = 5 * time.Second
	// longStream is how long an answer that streams must last to be worth it.
	longStream = time.Minute
	// maxPipePause is how long a pipe may pause because an answer asks for it
	// (Retry-After).
	maxPipePause = 5 * time.Second
	// keepIdle is how long a connection is kept for the next request.
	keepIdle = 30 * time.Second
)

// errCut means that an answer ended before its end: what was in it is lost.
var errCut = errors.New("an answer of the HTTP pipe was cut")

// clientPipe is the client's end of an HTTP pipe. Three goroutines make its
// requests: one sends what is written, one gets what there is to read, and one
// finds out how answers arrive. They end with Close, within lastWords, or with
// the pipe.
type clientPipe struct {
	pipeConn
	transport *http.Transport
	url       url.URL
	site      url.URL     // what the server takes url for
	header    http.Header // of every request
	secrets   secrets     // of header, and the proxy's
	forwarder *ProxyError // of a proxy that passes the requests on, as yet without a status; nil: none
	cookies   *Cookies
	id        pipeID
	ladder    *Ladder
	size      bodySize // owned by whoever sends

	ctx       context.Context // of the requests
	cancel    context.CancelFunc
	getting   context.Context // of those that get something
	endGets   context.CancelFunc
	closeOnce sync.Once

	// served is closed when the first POST has been answered. Where a forward proxy, or one
	// in front of the server, wants a password, nothing else is asked for before: a wrong
	// one, given by each goroutine, locks accounts.
	served    chan struct{}
	serveOnce sync.Once // closes it

	worked  atomic.Bool            // the server has answered
	server  atomic.Pointer[string] // the one that did; see serverHeader
	path    atomic.Int32           // a pipePath
	failure atomic.Pointer[error]  // what it died of
}

// connectPipe opens an HTTP pipe to target, with requests like r. It does not block:
// the first error of the network is found by whoever reads.
func (d *Dialer) connectPipe(target *url.URL, r *request) (*cork, error) {
	p := &clientPipe{
		header:  maps.Clone(r.header),
		secrets: r.secrets,
		cookies: d.Cookies,
		served:  make(chan struct{}),
		url:     *target,
		ladder:  d.Ladder,
		pipeConn: pipeConn{
			in: newQueue(firstBody, nil), out: newQueue(firstBody, nil),
			local: "pipe", remote: pipeAddr(d.addr()),
		},
	}
	if err := r.vouch(p); err != nil {
		return nil, err
	}
	delete(p.header, heartbeatHeader)
	uncached(p.header)
	rand.Read(p.id[:])
	p.url.Scheme = httpScheme(p.url.Scheme)
	p.site = *r.site(target)
	if r.forwarded {
		p.secrets = slices.Concat(p.secrets, r.proxy.secrets())
		p.forwarder = &ProxyError{Proxy: r.proxy.addr, Credential: r.proxy.credential}
		if r.basic {
			p.forwarder.Tried = basicScheme
		}
	}
	size, path := d.Ladder.pipe()
	p.size = size
	p.out.resize(size.size)
	p.path.Store(int32(path))
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.getting, p.endGets = context.WithCancel(p.ctx)
	if (r.proxy == nil || !r.proxy.credential) && !r.front {
		p.isServed()
	}
	p.transport = d.pipeTransport(p.ctx, r, p.setRemote)
	go p.send()
	go p.receive()
	if path == pathUnknown {
		go p.probe()
	}
	return newCork(newWire(p), true), nil
}

// pipeTransport makes the connections of a pipe until ctx ends, and says where each
// leads.
func (d *Dialer) pipeTransport(ctx context.Context, r *request, connected func(net.Addr)) *http.Transport {
	dial := func(context.Context, string, string) (conn net.Conn, err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, d.timeout(), errNoAnswer)
		defer cancel()
		if r.forwarded {
			conn, err = r.proxy.plain(ctx)
			r.progress.waits("the answer of the proxy %s to an HTTP request", r.proxy.addr)
		} else {
			conn, err = d.dialServer(ctx, r)
		}
		if err != nil {
			return nil, err
		}
		connected(conn.RemoteAddr())
		return &answerConn{Conn: conn, secrets: r.secrets}, nil
	}
	t := &http.Transport{
		DialContext:            dial,
		DialTLSContext:         dial,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHeader,
		IdleConnTimeout:        keepIdle,
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if r.forwarded { // with absolute URLs
		u := &url.URL{Scheme: "http", Host: r.proxy.addr}
		if r.basic {
			u.User = url.UserPassword(r.proxy.user, r.proxy.password)
		}
		t.Proxy = http.ProxyURL(u)
	}
	return t
}

// dialPipe makes a carrier over an HTTP pipe. Where a forward proxy has no leave for
// tunnels to the server, an http one is asked to pass on each request.
func (d *Dialer) dialPipe(ctx context.Context, r *request) (*Conn, []byte, error) {
	c, reply, err := d.dialOver(ctx, ModeHTTP, r, 0)
	if err == nil || !tunnelRefused(err) || !d.forwardable(r) {
		return c, reply, err
	}
	forwarded := *r
	forwarded.forwarded = true
	forwarded.basic = takesBasic(err)
	c, reply, forwardErr := d.dialOver(ctx, ModeHTTP, &forwarded, 0)
	if !forwarded.basic && takesBasic(forwardErr) {
		forwarded.basic = true
		c, reply, forwardErr = d.dialOver(ctx, ModeHTTP, &forwarded, 0)
	}
	if forwardErr != nil {
		return nil, nil, Telling(err, forwardErr)
	}
	return c, reply, nil
}

// forwardable reports whether a proxy can be told by the URL of a request alone where
// to connect to, and whether it would understand the request.
func (d *Dialer) forwardable(r *request) bool {
	return !d.secure() && r.proxy.scheme != "socks5" && origin(r.site(d.URL)) == origin(&url.URL{Scheme: "http", Host: d.addr()})
}

// takesBasic reports whether a proxy that refuses was given the credential in a way
// that shows it, or asks for that.
func takesBasic(err error) bool {
	refused, ok := errors.AsType[*ProxyError](err)
	return ok && refused.Credential &&
		(refused.Tried == basicScheme || refused.Tried == "" && slices.Contains(refused.Schemes, basicScheme))
}

// tunnelRefused reports whether a forward proxy said no to a tunnel, and not for want
// of a credential.
func tunnelRefused(err error) bool {
	refused, ok := errors.AsType[*ProxyError](err)
	return ok && !errors.Is(err, ErrProxyCredential) && refused.Status/100 == 4
}

// pipeFailure returns what the pipe below k died of, nil if it has not or is none.
func pipeFailure(k *cork) error {
	if p, ok := k.socket.(*clientPipe); ok {
		if err := p.failure.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// locationOf is where what a pipe died of redirects to.
func locationOf(err error) string {
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Status/100 == 3 {
		return refused.Location
	}
	return ""
}

// pipeError makes an error of Dial of what a pipe died of.
func (d *Dialer) pipeError(err error) error {
	if dial, ok := errors.AsType[*DialError](err); ok {
		return dial
	}
	return &DialError{PhaseUpgrade, d.addr(), err}
}

// fail ends the pipe.
func (p *clientPipe) fail(err error) {
	p.failure.CompareAndSwap(nil, &err)
	p.in.fail(err)
	p.out.fail(err)
	p.cancel()
}

// Close ends the pipe. What was written is still sent, and the server told, as far
// as that takes no longer than lastWords. It does not wait for it.
func (p *clientPipe) Close() error {
	p.closeOnce.Do(func() {
		p.closeQueues()
		p.endGets()
		timer := time.AfterFunc(lastWords, p.cancel)
		context.AfterFunc(p.ctx, func() { timer.Stop() })
	})
	return nil
}

func (p *clientPipe) isServed() { p.serveOnce.Do(func() { close(p.served) }) }

// waitServed reports whether there is something to ask for.
func (p *clientPipe) waitServed() bool {
	select {
	case <-p.served:
		return true
	case <-p.getting.Done():
		return false
	}
}

// pipeAnswer is what a pipe's request was answered with.
type pipeAnswer struct {
	status int
	err    error // what makes of it an error, nil for none
}

// again reports whether to send the request again. A pipe lives no longer without
// requests than maxPipePause, so whoever asks for more time ends it.
func (a pipeAnswer) again() bool {
	if RetryAfter(a.err) > maxPipePause || errors.Is(a.err, ErrSeveralServers) {
		return false
	}
	switch a.status {
	case 0, http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		_, dialled := errors.AsType[*DialError](a.err)
		return !dialled
	}
	return false
}

// request makes one request; set adds to its header. The answer's status is that
// which was wanted, and its offset the server's, or there is an error and no resp.
func (p *clientPipe) request(ctx context.Context, method string, body []byte, want int, set func(http.Header)) (resp *http.Response, a pipeAnswer) {
	target := p.url
	if method == http.MethodGet { // a cache may know nothing of no-store
		query := "r=" + strconv.FormatUint(random(), 36)
		if target.RawQuery != "" {
			query = target.RawQuery + "&" + query
		}
		target.RawQuery = query
	}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), r)
	if err != nil {
		return nil, pipeAnswer{err: err}
	}
	req.Host = p.header.Get("Host")
	req.Header = maps.Clone(p.header)
	req.Header.Del("Host")
	p.cookies.add(req.Header, &p.site)
	set(req.Header)
	resp, err = p.transport.RoundTrip(req)
	if err != nil {
		return nil, pipeAnswer{err: p.secrets.hideError(answerError(err))}
	}
	p.cookies.keep(&p.site, resp)
	if !p.sameServer(resp.Header.Get(serverHeader)) {
		resp.Body.Close()
		return nil, pipeAnswer{err: ErrSeveralServers}
	}
	if resp.StatusCode == want {
		return resp, pipeAnswer{status: want}
	}
	said := resp.Body
	defer said.Close()
	if resp.StatusCode == http.StatusProxyAuthRequired && p.forwarder != nil {
		e := *p.forwarder
		e.Status, e.Server, e.Schemes = resp.StatusCode, resp.Header.Get("Server"), schemesOf(challengesOf(resp.Header))
		e.hide(p.secrets)
		return nil, pipeAnswer{resp.StatusCode, &DialError{PhaseProxy, e.Proxy, &e}}
	}
	if resp.StatusCode == http.StatusSwitchingProtocols { // its body is the connection, which knows no context
		resp.Body = nil
		return nil, pipeAnswer{resp.StatusCode, refused(resp, p.secrets)}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(said, bodyRead), said}
	return nil, pipeAnswer{resp.StatusCode, refused(resp, p.secrets)}
}

// sameServer reports whether the server of this name, "" if an answer has none, is the
// one that has answered before.
func (p *clientPipe) sameServer(name string) bool {
	if name == "" || p.server.CompareAndSwap(nil, &name) {
		return true
	}
	return *p.server.Load() == name
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

// pause waits before the request is sent again for the n-th time: for as long as the
// answer asked, or a little longer each time.
func pause(ctx context.Context, n int, asked time.Duration) {
	wait := max(time.Duration(n-1)*200*time.Millisecond, asked)
	if wait <= 0 {
		return
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

var bodies = sync.Pool{New: func() any { return new([]byte) }}

// send sends what is written, one POST at a time, until there is no more.
func (p *clientPipe) send() {
	defer p.transport.CloseIdleConnections()
	defer p.cancel()
	offset := int64(0)
	for {
		n, err := p.out.ready(p.ctx, 0)
		if err != nil {
			if p.failure.Load() == nil && p.worked.Load() {
				p.sendClose(offset)
			}
			return
		}
		body := bodies.Get().(*[]byte)
		*body = slices.Grow((*body)[:0], n)[:n]
		n, err = p.out.readTurn(0, *body)
		straight := true
		if err == nil {
			straight, err = p.post(offset, (*body)[:n])
		}
		if straight { // otherwise net/http may still be writing some of it
			bodies.Put(body)
		}
		switch {
		case err == nil:
			offset += int64(n)
		case errors.Is(err, io.ErrClosedPipe): // what is left to be got still is
			p.out.fail(err)
			p.isServed()
			<-p.getting.Done()
			return
		default:
			if p.ctx.Err() == nil {
				p.fail(err)
			}
			return
		}
	}
}

// post sends body, in pieces that are small enough for what is between, and each
// again if need be: the server skips what it has had. It says whether all requests
// were answered after their bodies.
func (p *clientPipe) post(offset int64, body []byte) (straight bool, err error) {
	straight = true
	failures := 0
	for len(body) > 0 {
		piece := body[:min(len(body), p.size.size)]
		began := time.Now()
		resp, a := p.request(p.ctx, http.MethodPost, piece, http.StatusNoContent, func(h http.Header) {
			p.identify(h, offset)
		})
		if a.err == nil {
			resp.Body.Close()
			end, ok := oneOffset(resp.Header)
			if !ok || end < offset || end > offset+int64(len(piece)) {
				return false, errNotOurs
			}
			p.worked.Store(true)
			p.isServed()
			done := int(end - offset)
			if done == len(piece) {
				p.size.took(done, time.Since(began))
				p.resized()
			}
			offset, body, failures = end, body[done:], 0
			continue
		}
		straight = false
		switch {
		case a.status == http.StatusGone:
			return straight, io.ErrClosedPipe
		case a.status == http.StatusRequestEntityTooLarge && p.size.tooLarge(len(piece)):
			p.resized()
			continue
		case !a.again() || !p.worked.Load() || failures >= pipeRetries || p.ctx.Err() != nil:
			return straight, a.err
		}
		failures++
		if failures == 2 && a.status == 0 {
			p.size.cut(len(piece))
			p.resized()
		}
		pause(p.ctx, failures, RetryAfter(a.err))
	}
	return straight, nil
}

func (p *clientPipe) resized() {
	p.out.resize(p.size.size)
	p.ladder.setBody(p.size)
}

var errNotOurs = fmt.Errorf("%w: it answers an HTTP request of the carrier with something else, such as a page of a proxy or a cached answer", ErrNotCulvert)

// sendClose tells the server that nothing follows.
func (p *clientPipe) sendClose(offset int64) {
	resp, a := p.request(p.ctx, http.MethodPost, nil, http.StatusNoContent, func(h http.Header) {
		p.identify(h, offset)
		h.Set(closeHeader, "1")
	})
	if a.err == nil {
		resp.Body.Close()
	}
}

func (p *clientPipe) identify(h http.Header, offset int64) {
	h.Set(pipeHeader, p.id.String())
	h.Set(offsetHeader, strconv.FormatInt(offset, 10))
}

// receive gets what there is to read, one GET at a time, until there is no more.
func (p *clientPipe) receive() {
	if !p.waitServed() {
		return
	}
	g := getting{polls: newPollWait()}
	for p.get(&g) {
		pause(p.getting, g.failures, g.asked)
	}
}

// pollWait follows how long polls may wait at the server.
type pollWait struct {
	wait    time.Duration
	since   time.Time     // of the last cut or growth
	grown   bool          // the last of these was a growth
	tooLong time.Duration // to which wait had grown when a poll was cut; 0: none was
	calm    time.Duration // to pass without a cut before that is tried again
}

func newPollWait() pollWait { return pollWait{wait: firstWait, calm: firstCalm} }

// cut notes that a poll was cut after that time: somebody between may not wait so
// long, or it was a mishap.
func (p *pollWait) cut(took time.Duration, now time.Time) {
	if p.grown {
		p.tooLong, p.calm = p.wait, min(2*p.calm, longestCalm)
	}
	p.wait = max(min(p.wait, took)/2, minWait)
	p.since, p.grown = now, false
}

// answered notes that a poll was.
func (p *pollWait) answered(now time.Time) {
	if p.wait == firstWait {
		return
	}
	next, calm := min(2*p.wait, firstWait), firstCalm
	if p.tooLong > 0 && next >= p.tooLong {
		calm = p.calm
	}
	if now.Sub(p.since) >= calm {
		p.wait, p.since, p.grown = next, now, true
	}
}

// getting is what one GET leaves to the next.
type getting struct {
	offset   int64 // bytes received so far
	polls    pollWait
	failures int           // in a row
	cut      bool          // the last answer streamed, and not for long
	asked    time.Duration // to wait before the next one, by the last answer
}

// get makes one GET and reports whether to make another one.
func (p *clientPipe) get(g *getting) bool {
	polls := pipePath(p.path.Load()) != pathStreams
	began := time.Now()
	resp, a := p.request(p.getting, http.MethodGet, nil, http.StatusOK, func(h http.Header) {
		p.identify(h, g.offset)
		if polls {
			wait := g.polls.wait
			if g.offset == 0 {
				wait = min(wait, helloWait)
			}
			h.Set(waitHeader, strconv.FormatInt(wait.Milliseconds(), 10))
		}
	})
	g.asked = RetryAfter(a.err)
	answered, n := a.err == nil, int64(0)
	if answered {
		if at, ok := oneOffset(resp.Header); !ok || at != g.offset {
			resp.Body.Close()
			p.fail(errNotOurs)
			return false
		}
		p.worked.Store(true)
		n, a.err = p.take(resp.Body)
		g.offset += n
		g.cut = !polls && time.Since(began) < longStream
	}
	took := time.Since(began)
	switch {
	case p.getting.Err() != nil:
		return false
	case a.status == http.StatusGone:
		p.in.finish()
		return false
	case a.status == http.StatusConflict:
		if g.cut { // in HTTP/1.0 that looks like an end
			p.setPath(pathBuffers)
		}
		p.fail(errCut)
		return false
	case !answered && (!a.again() || !p.worked.Load()):
		p.fail(a.err)
		return false
	case n > 0, a.err == nil && took > minWait/2:
		g.failures = 0
		if polls && a.err == nil {
			g.polls.answered(time.Now())
		}
	case answered && g.cut && a.err != nil: // nothing is lost, if the next one is let in
	case polls && took > minWait: // somebody between does not wait so long
		g.polls.cut(took, time.Now())
	default:
		g.failures++
	}
	if answered && g.cut && (a.err != nil || g.failures > 0) { // short answers are better
		p.setPath(pathBuffers)
	}
	if g.failures > pipeRetries {
		p.fail(cmp.Or(a.err, errCut))
		return false
	}
	return true
}

// take passes body on to the reader and returns how many bytes there were. It
// waits for the reader.
func (p *clientPipe) take(body io.ReadCloser) (taken int64, err error) {
	defer body.Close()
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			m, err := p.in.write(p.getting, buf[:n])
			taken += int64(m)
			if err != nil {
				return taken, err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return taken, nil
		case err != nil:
			return taken, err
		}
	}
}

// probe finds out whether the way back streams.
func (p *clientPipe) probe() {
	if !p.waitServed() {
		return
	}
	ctx, cancel := context.WithTimeout(p.getting, probePatience)
	defer cancel()
	resp, a := p.request(ctx, http.MethodGet, nil, http.StatusOK, func(h http.Header) { h.Set(pipeHeader, pipeProbe) })
	if errors.Is(a.err, ErrSeveralServers) {
		p.fail(a.err)
	}
	if a.err != nil {
		return
	}
	defer resp.Body.Close()
	var b [1]byte
	if _, err := io.ReadFull(resp.Body, b[:]); err != nil {
		return
	}
	first := time.Now()
	if _, err := io.ReadFull(resp.Body, b[:]); err != nil {
		return
	}
	path := pathBuffers
	if time.Since(first) > probePause/2 {
		path = pathStreams
	}
	p.setPath(path)
}

func (p *clientPipe) setPath(path pipePath) {
	p.path.Store(int32(path))
	p.ladder.setPath(path)
}
