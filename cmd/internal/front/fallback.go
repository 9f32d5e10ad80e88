package front

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How long a fallback may take.
const (
	fallbackConnect = 10 * time.Second // for TCP, and again for TLS
	fallbackAnswer  = 60 * time.Second // to begin an answer
)

// Fallback passes requests on to a web server. It is made by NewFallback.
type Fallback struct {
	backend   backend
	proxy     httputil.ReverseProxy
	transport *http.Transport
	log       *slog.Logger

	mu     sync.Mutex // guards warned
	warned time.Time
}

// NewFallback returns a reverse proxy to target, an http or https URL without a path.
// The certificate of an https target is verified.
//
// A request keeps its path, its query and its headers, Origin and Referer among them.
// The web server gets its own name as Host, and the visitor's address and the host and
// scheme that the visitor used in X-Forwarded-For, -Host and -Proto. Other headers that
// seem to say where a request comes from are removed, since the visitor may have written
// them. In the headers of its answers its own name is replaced, so that visitors come back
// here and do not learn where the web server is. Upgrades to WebSocket are passed on, and
// no others: what follows one to HTTP/2 would be requests that nobody here has looked at.
//
// A web server that cannot be reached is answered 502, one that does not begin to answer
// within 60 s 504. log gets a warning then, once a minute at most.
func NewFallback(target *url.URL, log *slog.Logger) *Fallback {
	f := &Fallback{backend: newBackend(target), log: log, transport: &http.Transport{
		DialContext:           dialerOf(target),
		TLSHandshakeTimeout:   fallbackConnect,
		ResponseHeaderTimeout: fallbackAnswer,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   32,
		DisableCompression:    true, // what the client did not ask for
		Protocols:             new(http.Protocols),
	}}
	f.transport.Protocols.SetHTTP1(true) // in which there are upgrades
	f.proxy = httputil.ReverseProxy{
		Transport: f.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.URL.RawQuery = r.In.URL.RawQuery // the library leaves out what it cannot parse
			for name := range r.Out.Header {
				if forwarding(name) {
					delete(r.Out.Header, name)
				}
			}
			r.SetXForwarded()
			for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Proto"} { // a trusted proxy's
				if said := r.In.Header.Get(name); said != "" {
					r.Out.Header.Set(name, said)
				}
			}
		},
		ErrorHandler: f.failed,
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return f
}

// dialerOf returns what connects to target. A name is resolved each time, but localhost
// never: it is 127.0.0.1 and ::1, and the one that has answered comes first from then on,
// so that a program that appears at the other one gets no visitors.
func dialerOf(target *url.URL) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: fallbackConnect} //nolint:forbidigo // no stream has to do with it
	if !strings.EqualFold(strings.TrimSuffix(target.Hostname(), "."), "localhost") {
		return d.DialContext
	}
	hosts := [...]string{"127.0.0.1", "::1"}
	var answered atomic.Int32 // an index of hosts
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		first := answered.Load()
		conn, err := d.DialContext(ctx, network, net.JoinHostPort(hosts[first], port))
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		conn, other := d.DialContext(ctx, network, net.JoinHostPort(hosts[1-first], port))
		if other != nil {
			return nil, err
		}
		answered.CompareAndSwap(first, 1-first)
		return conn, nil
	}
}

func (f *Fallback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect { // which is for proxies of another kind
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	if r.ProtoMajor != 1 { // the beginning of HTTP/2
		http.Error(w, http.StatusText(http.StatusHTTPVersionNotSupported), http.StatusHTTPVersionNotSupported)
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		r = r.Clone(r.Context())
		r.Header.Del("Upgrade")
	}
	outer := outerOrigin(r)
	hide := func(header http.Header) { f.backend.hide(header, outer) }
	proxy := f.proxy // a copy for this visitor
	proxy.ModifyResponse = func(resp *http.Response) error {
		hide(resp.Header)
		return nil
	}
	proxy.ServeHTTP(&hintWriter{w, hide}, r)
}

// forwarding reports whether a header seems to say where a request comes from. Many web
// servers do not tell dashes from underscores (RFC 3875, 4.1.18).
func forwarding(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return slices.Contains(strings.Split(name, "-"), "forwarded") ||
		slices.ContainsFunc([]string{"real-ip", "client-ip", "connecting-ip", "originating-ip", "remote-ip", "remote-addr"}, func(end string) bool {
			return name == end || strings.HasSuffix(name, "-"+end)
		})
}

// outerOrigin returns how the visitor reached this server, or the trusted proxy in front
// of it.
func outerOrigin(r *http.Request) origin {
	o := origin{scheme: "http", host: cmp.Or(r.Header.Get("X-Forwarded-Host"), r.Host)}
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		o.scheme = "https"
	}
	return o
}

// hintWriter hides the backend in hints (103), which reach no ModifyResponse.
type hintWriter struct {
	http.ResponseWriter
	hide func(http.Header)
}

func (w *hintWriter) WriteHeader(status int) {
	if status/100 == 1 {
		w.hide(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *hintWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Close ends the connections that nobody uses at the moment.
func (f *Fallback) Close() { f.transport.CloseIdleConnections() }

func (f *Fallback) failed(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		status = http.StatusGatewayTimeout
	}
	if !errors.Is(err, context.Canceled) && f.seldom() { // not by the client
		f.log.Warn("fallback does not answer", "path", r.URL.Path, "status", status, "error", err)
	}
	http.Error(w, http.StatusText(status), status)
}

func (f *Fallback) seldom() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.warned.IsZero() && time.Since(f.warned) < time.Minute {
		return false
	}
	f.warned = time.Now()
	return true
}
