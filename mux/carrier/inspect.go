package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"time"
)

// Inspection is what stands on the way to a server, as far as [Dialer.Inspect] got.
type Inspection struct {
	Addrs       []net.IPAddr  // of the first host that is connected to; none if it is an address itself
	ResolveTime time.Duration // that the look-up took
	Remote      string        // the address that the socket is connected to; "" if none is
	ConnectTime time.Duration // that its TCP handshake took

	Proxy string // the forward proxy in use, "host:port"; "" for none

	TLS *tls.ConnectionState // with the server, or whoever answers in its place; nil: none

	// The answer to an ordinary request without a credential. The strings come
	// from whoever answered, as they are.
	Status int // HTTP status; 0: there was no answer
	Server string
	Via    string
}

// Front is what the answer says of who gave it, quoted; "" if it says nothing, as a
// culvert server's does.
func (in *Inspection) Front() string {
	switch {
	case in.Server != "" && in.Via != "":
		return fmt.Sprintf("%q (via %q)", in.Server, in.Via)
	case in.Via != "":
		return strconv.Quote(in.Via)
	case in.Server != "":
		return strconv.Quote(in.Server)
	}
	return ""
}

// Inspect goes the way of a Dial, but makes an ordinary request instead of an upgrade
// and sends no credential to the server. It returns what it has seen also with an
// error, which is a [*DialError].
func (d *Dialer) Inspect(ctx context.Context) (*Inspection, error) {
	in := new(Inspection)
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(d.Timeout, defaultHandshakeTimeout))
	defer cancel()

	r, err := d.request(nil)
	if err != nil {
		return in, &DialError{PhaseSetup, d.addr(), err}
	}
	rec := recorder{began: make(map[string]time.Time)}
	conn, err := d.dialServer(httptrace.WithClientTrace(ctx, rec.trace()), r)
	rec.mu.Lock()
	in.Addrs, in.ResolveTime, in.Remote, in.ConnectTime = rec.addrs, rec.resolved, rec.remote, rec.connected
	rec.mu.Unlock()
	if err != nil {
		return in, err
	}
	defer socketOf(conn).Close()
	if r.proxy != nil {
		in.Proxy = r.proxy.addr
	}
	if secured, ok := conn.(*tls.Conn); ok {
		state := secured.ConnectionState()
		in.TLS = &state
	}

	handOver := func(context.Context, string, string) (net.Conn, error) { return &answerConn{Conn: conn}, nil }
	transport := &http.Transport{
		DialContext: handOver, DialTLSContext: handOver, DisableKeepAlives: true,
		MaxResponseHeaderBytes: maxResponseHeader, Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	target := *d.URL
	target.Scheme, target.Path, target.Fragment = httpScheme(target.Scheme), cmp.Or(target.Path, "/"), ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return in, &DialError{PhaseSetup, d.addr(), err}
	}
	req.Host = r.header.Get("Host")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return in, d.checkScheme(ctx, r, &DialError{PhaseUpgrade, d.addr(), because(ctx, answerError(err))})
	}
	resp.Body.Close()
	in.Status, in.Server, in.Via = resp.StatusCode, resp.Header.Get("Server"), resp.Header.Get("Via")
	return in, nil
}

// recorder notes what net.Dialer tells, which races addresses and may tell of the
// loser when the Dial is over. Only the first look-up and the first connection count:
// behind a proxy there are no others.
type recorder struct {
	mu        sync.Mutex
	asked     time.Time
	addrs     []net.IPAddr
	resolved  time.Duration
	began     map[string]time.Time // to connect to each address
	remote    string               // that was the first to be connected
	connected time.Duration
}

func (r *recorder) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.asked = time.Now()
		},
		DNSDone: func(done httptrace.DNSDoneInfo) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.addrs == nil && done.Err == nil {
				r.addrs, r.resolved = done.Addrs, time.Since(r.asked)
			}
		},
		ConnectStart: func(_, addr string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.began[addr] = time.Now()
		},
		ConnectDone: func(_, addr string, err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.remote == "" && err == nil {
				r.remote, r.connected = addr, time.Since(r.began[addr])
			}
		},
	}
}
