package carrier

import (
	"crypto/tls"
	"encoding/base64"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// An HTTP pipe is a net.Conn made of plain HTTP requests, for networks that let no
// Upgrade through. The upgrade request and everything after it run on it unchanged.
// Its wire format is PROTOCOL.md, 1.7.
const (
	pipeHeader   = "Culvert-Pipe"   // the pipe's identifier; "probe" for none
	offsetHeader = "Culvert-Offset" // of the body's first byte, in the request; where the upstream has got to, in the answer
	waitHeader   = "Culvert-Wait"   // of a GET: it is a poll, and how many ms it waits
	closeHeader  = "Culvert-Close"  // of a POST: nothing follows
	serverHeader = "Culvert-Server" // of an answer: which server it comes from
)

const (
	pipeProbe = "probe" // instead of an identifier

	// maxBody is the most bytes of one POST, and of the answer to one poll.
	maxBody = 1 << 20
	// firstBody is how many that are at first, before the pace is known.
	firstBody = 256 << 10
	minBody   = 1 << 10

	// maxRequests bounds the requests of one pipe at a time, which are two, and
	// those that boxes between still hold.
	maxRequests = 16

	// maxPoll is the longest that a poll waits at the server.
	maxPoll = 30 * time.Second
	// pipeIdle is how long a pipe lives at the server without a request.
	pipeIdle = 30 * time.Second
	// streamed is how long an answer streams before the server ends it.
	streamed = 5 * time.Minute
	// bodyPatience is the longest pause in a body that is being sent.
	bodyPatience = 30 * time.Second
	// roomPatience is how long a POST waits for room at the server.
	roomPatience = 10 * time.Second
	// probePause is the time between the two bytes of a probe's answer.
	probePause = 200 * time.Millisecond
)

// pipeID identifies a pipe: 128 random bits, chosen by the client.
type pipeID [16]byte

func (id pipeID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// pipeRequest is what a request says about a pipe.
type pipeRequest struct {
	probe  bool // and nothing else
	post   bool // bytes for the server; otherwise a GET, which wants some
	id     pipeID
	offset int64
	poll   bool          // GET: the answer ends with what there is
	wait   time.Duration // of a poll: the longest wait for a first byte
	close  bool          // POST: nothing follows
}

// parsePipe reads a request's headers; ok is false if it is not one of a pipe's.
// There is one way to write each value, so that nobody reads another one.
func parsePipe(r *http.Request) (q pipeRequest, ok bool) {
	switch r.Method {
	case http.MethodPost:
		q.post = true
	case http.MethodGet:
	default:
		return q, false
	}
	id, ok := oneHeader(r.Header, pipeHeader)
	if !ok {
		return q, false
	}
	if id == pipeProbe {
		q.probe = true
		return q, !q.post
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil || len(id) != base64.RawURLEncoding.EncodedLen(len(q.id)) || copy(q.id[:], raw) != len(q.id) {
		return q, false
	}
	if q.offset, ok = oneOffset(r.Header); !ok {
		return q, false
	}
	if r.Header.Values(waitHeader) != nil {
		v, _ := oneHeader(r.Header, waitHeader)
		ms, ok := decimal(v)
		if !ok || q.post || ms > maxPoll.Milliseconds() {
			return q, false
		}
		q.poll, q.wait = true, time.Duration(ms)*time.Millisecond
	}
	if r.Header.Values(closeHeader) != nil {
		v, ok := oneHeader(r.Header, closeHeader)
		if !ok || v != "1" || !q.post {
			return q, false
		}
		q.close = true
	}
	return q, true
}

func oneHeader(h http.Header, name string) (string, bool) {
	values := h.Values(name)
	if len(values) != 1 {
		return "", false
	}
	return values[0], true
}

// oneOffset reads the Culvert-Offset header of a request or answer.
func oneOffset(h http.Header) (int64, bool) {
	v, ok := oneHeader(h, offsetHeader)
	if !ok {
		return 0, false
	}
	return decimal(v)
}

// decimal reads a number without sign, spaces and leading zeros.
func decimal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && strconv.FormatInt(n, 10) == s && n >= 0
}

// uncached makes h, of a request or an answer, one that nobody between should
// keep, change or wait for more of.
func uncached(h http.Header) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-store, no-transform")
}

// bodySize follows how many bytes go into one request without keeping those
// behind them waiting.
type bodySize struct {
	size, most int
	least      time.Duration // that a request has taken: what is left of it without a body; 0: none has been seen
}

const (
	quickBody = 100 * time.Millisecond
	slowBody  = 400 * time.Millisecond
	// smallBody is what passes everywhere, and quickly enough.
	smallBody = 16 << 10
)

// took notes that n bytes have taken d. On a long way that says little about them.
func (b *bodySize) took(n int, d time.Duration) {
	if b.least == 0 || d < b.least {
		b.least = d
	}
	switch d -= b.least; {
	case d > slowBody && n > b.size/2:
		b.size = max(b.size/2, min(smallBody, b.most))
	case d < quickBody && n == b.size:
		b.size = min(b.size+b.size/4, b.most)
	}
}

// cut notes that a request with n bytes was cut again and again, which may be for
// their number: something between may have no better way to say that they are too
// many. Nobody means less than smallBody with it.
func (b *bodySize) cut(n int) {
	if n > smallBody {
		b.most = max(n/2, smallBody)
		b.size = min(b.size, b.most)
	}
}

// tooLarge notes that something between does not let n bytes pass. It reports
// whether there is anything left to try.
func (b *bodySize) tooLarge(n int) bool {
	if n <= minBody {
		return false
	}
	b.most = max(n/2, minBody)
	b.size = b.most
	return true
}

// pipeConn is what both ends of a pipe have in common: the net.Conn.
type pipeConn struct {
	in, out *queue
	local   pipeAddr

	mu     sync.Mutex // guards the following
	remote pipeAddr   // of a connection below
	abrupt bool       // what was not sent yet is forgotten by Close
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(nil, p) }   //nolint:staticcheck // nil: the conn's deadline counts
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(nil, p) } //nolint:staticcheck // the same
func (c *pipeConn) LocalAddr() net.Addr         { return c.local }

func (c *pipeConn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote
}

func (c *pipeConn) setRemote(addr net.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remote = pipeAddr(addr.String())
}

func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}

func (c *pipeConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(t)
	return nil
}

func (c *pipeConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(t)
	c.out.setDeadline(t)
	return nil
}

// SetLinger with 0 makes Close forget what was not sent yet, as that of a TCP
// connection.
func (c *pipeConn) SetLinger(seconds int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abrupt = seconds == 0
	return nil
}

// tryRead reads what has arrived, if anything has.
func (c *pipeConn) tryRead(p []byte) (n int, err error, ready bool) { return c.in.tryRead(p) }

// closeQueues is the part of Close that both ends have in common.
func (c *pipeConn) closeQueues() {
	c.in.fail(net.ErrClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abrupt {
		c.out.fail(net.ErrClosed)
	} else {
		c.out.finish()
	}
}

// pipeAddr is an address as text.
type pipeAddr string

func (pipeAddr) Network() string  { return "http" }
func (a pipeAddr) String() string { return string(a) }

// tryReader is the end of a pipe.
type tryReader interface {
	tryRead(p []byte) (n int, err error, ready bool)
}

// securedPipe is the server's end of a pipe whose requests come over TLS, as
// net/http asks for it.
type securedPipe struct {
	*serverPipe
	state tls.ConnectionState
}

func (p securedPipe) ConnectionState() tls.ConnectionState { return p.state }
