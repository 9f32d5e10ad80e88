package carrier

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// pipes are the HTTP pipes of one Server.Serve, and the listener whose conns
// they are.
type pipes struct {
	name               string // of this server in its answers, made at random
	total, perIdentity int
	idle               time.Duration // how long a pipe lives without a request
	log                *slog.Logger
	limits             seldom
	memory             *pipeMemory

	accept chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu         sync.Mutex // guards the following
	byID       map[pipeID]*serverPipe
	byIdentity map[string]int
}

func newPipes(total, perIdentity int, idle time.Duration, memory *pipeMemory, log *slog.Logger) *pipes {
	return &pipes{
		name: rand.Text(), total: total, perIdentity: perIdentity, idle: idle, memory: memory, log: log,
		accept: make(chan net.Conn), closed: make(chan struct{}),
		byID: make(map[pipeID]*serverPipe), byIdentity: make(map[string]int),
	}
}

// Accept returns the next pipe that a client has opened.
func (s *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-s.accept:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (s *pipes) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr means nothing.
func (s *pipes) Addr() net.Addr { return pipeAddr("pipes") }

// closeAll ends all pipes, carriers included.
func (s *pipes) closeAll() {
	s.mu.Lock()
	all := make([]*serverPipe, 0, len(s.byID))
	for _, p := range s.byID {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.lose(net.ErrClosed)
	}
}

// Contexts of requests hold the pipes of their Serve, or that they came through one of
// these, and the conn they came by.
type (
	pipesKey  struct{}
	insideKey struct{}
	connKey   struct{}
)

// insidePipe reports whether r came through an HTTP pipe.
func insidePipe(r *http.Request) bool { return r.Context().Value(insideKey{}) != nil }

// These mean that there are too many.
var (
	errPipes       = errors.New("too many pipes")
	errRequests    = errors.New("too many requests of one pipe at once")
	errConnections = errors.New("too many connections of this identity")
)

// find returns the pipe that the request is about, busy until rest is called. Nil
// without an error means that there is none for this identity.
func (s *pipes) find(r *http.Request, ask pipeRequest, identity string) (*serverPipe, error) {
	s.mu.Lock()
	if p := s.byID[ask.id]; p != nil {
		defer s.mu.Unlock()
		if p.identity != identity {
			return nil, nil //nolint:nilnil // documented
		}
		if !p.busy() {
			return nil, errRequests
		}
		return p, nil
	}
	if ask.offset != 0 || ask.close {
		s.mu.Unlock()
		return nil, nil //nolint:nilnil // documented
	}
	if len(s.byID) >= s.total || s.byIdentity[identity] >= s.perIdentity {
		s.mu.Unlock()
		if n, ok := s.limits.now(); ok {
			s.log.Warn("limit reached", "limit", "pipes", "client", identity, "remote", r.RemoteAddr, "times", n)
		}
		return nil, errPipes
	}
	p := newServerPipe(s, ask.id, identity, r)
	p.busy()
	s.byID[p.id] = p
	s.byIdentity[identity]++
	s.mu.Unlock()

	var conn net.Conn = p
	if r.TLS != nil {
		conn = securedPipe{p, *r.TLS}
	}
	select {
	case s.accept <- conn:
		return p, nil
	case <-s.closed:
	case <-r.Context().Done():
	}
	p.lose(net.ErrClosed)
	p.rest()
	return nil, net.ErrClosed
}

func (s *pipes) remove(p *serverPipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[p.id] != p {
		return
	}
	p.forget()
	delete(s.byID, p.id)
	if s.byIdentity[p.identity]--; s.byIdentity[p.identity] == 0 {
		delete(s.byIdentity, p.identity)
	}
}

// serverPipe is the server's end of an HTTP pipe. It is in the set until its
// client has been told that it is over, or asks for nothing any more.
type serverPipe struct {
	pipeConn
	set      *pipes
	id       pipeID
	identity string

	mu       sync.Mutex // guards the following
	requests int        // in progress
	timer    *time.Timer
	size     bodySize // of the answers to polls
	last     int      // bytes of the last one
	answered time.Time
	removed  bool // from the set: it needs no timer any more
}

func newServerPipe(s *pipes, id pipeID, identity string, r *http.Request) *serverPipe {
	return &serverPipe{
		pipeConn: pipeConn{
			in: newQueue(firstBody, s.memory), out: newQueue(firstBody, s.memory),
			local: "pipe", remote: pipeAddr(r.RemoteAddr),
		},
		set: s, id: id, identity: identity,
		size: bodySize{size: firstBody, most: maxBody},
	}
}

// busy notes that a request begins, if there are not too many, and rest that it has
// ended.
func (p *serverPipe) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests == maxRequests {
		return false
	}
	p.requests++
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	return true
}

var errForgotten = errors.New("the client of the HTTP pipe does not ask any more")

func (p *serverPipe) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests--; p.requests == 0 && !p.removed {
		p.timer = time.AfterFunc(p.set.idle, func() { p.lose(errForgotten) })
	}
}

// Close ends the pipe. What was written can still be fetched.
func (p *serverPipe) Close() error {
	p.closeQueues()
	return nil
}

// CloseWrite ends what the client can fetch.
func (p *serverPipe) CloseWrite() error {
	p.out.finish()
	return nil
}

// lose ends the pipe for both ends at once.
func (p *serverPipe) lose(err error) {
	p.in.fail(err)
	p.out.fail(err)
	p.set.remove(p)
}

// forget ends the timer.
func (p *serverPipe) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = true
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

// servePipe answers a request of a pipe. The caller has looked at its credential.
func (h *Handler) servePipe(w http.ResponseWriter, r *http.Request, set *pipes, ask pipeRequest, identity string) {
	uncached(w.Header())
	w.Header().Set(serverHeader, set.name)
	w.Header().Set("X-Accel-Buffering", "no") // asks nginx not to wait for more
	if ask.probe {
		answerProbe(w, r)
		return
	}
	var p *serverPipe
	err := errConnections
	if claim(r, identity) {
		p, err = set.find(r, ask, identity)
	}
	switch {
	case errors.Is(err, net.ErrClosed):
		w.Header().Set(refusalHeader, RefusalStopping)
		http.Error(w, "server is stopping", http.StatusServiceUnavailable)
		return
	case err != nil:
		h.debug(r, "pipe", err)
		w.Header().Set(refusalHeader, RefusalLimit)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case p == nil:
		h.debug(r, "no such pipe", nil)
		clear(w.Header())
		w.Header().Set(serverHeader, set.name)
		http.NotFound(w, r)
		return
	}
	defer p.rest()
	// net/http sends the end of an answer after this, or all of a short one.
	defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyPatience)) }()
	if ask.post {
		p.take(w, r, ask)
	} else {
		p.give(w, r, ask)
	}
}

// claim counts the request's connection as one of an identity, until its next request. It
// reports false if there are too many.
func claim(r *http.Request, identity string) bool {
	conn, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok {
		return true
	}
	wire := findWire(conn)
	return wire == nil || wire.counted.claim(identity)
}

// answerProbe lets the client find out whether what is written arrives at once.
func answerProbe(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_, _ = w.Write([]byte{0})
	_ = rc.Flush()
	select {
	case <-time.After(probePause):
		_, _ = w.Write([]byte{0})
	case <-r.Context().Done():
	}
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// take is the answer to a POST: it waits until the pipe has taken the body, or
// until there has been no room for a while, and says how far it got.
func (p *serverPipe) take(w http.ResponseWriter, r *http.Request, ask pipeRequest) {
	rc := http.NewResponseController(w)
	buf, done := p.set.memory.buffer()
	defer done()
	body := http.MaxBytesReader(w, r.Body, maxBody)
	offset := ask.offset
	if offset > p.in.received() {
		http.Error(w, errGap.Error(), http.StatusConflict)
		return
	}
	room, cancel := context.WithTimeout(r.Context(), roomPatience)
	defer cancel()
	for {
		_ = rc.SetReadDeadline(time.Now().Add(bodyPatience))
		n, err := body.Read(buf)
		if n > 0 {
			m, takeErr := p.in.writeAt(room, offset, buf[:n])
			offset += int64(m)
			switch {
			case takeErr == nil:
			case room.Err() != nil && r.Context().Err() == nil:
				_, _ = io.Copy(io.Discard, body) // it comes again
				taken(w, offset)
				return
			default:
				http.Error(w, takeErr.Error(), http.StatusGone)
				return
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			http.Error(w, "too many bytes", http.StatusRequestEntityTooLarge)
			return
		}
		if err != nil {
			http.Error(w, "the body cannot be read", http.StatusBadRequest)
			return
		}
	}
	switch {
	case ask.close:
		p.in.finish()
		p.out.fail(io.ErrClosedPipe)
		p.set.remove(p)
	case p.in.ended(): // also if the body has nothing new
		http.Error(w, net.ErrClosed.Error(), http.StatusGone)
		return
	}
	taken(w, offset)
}

func taken(w http.ResponseWriter, offset int64) {
	w.Header().Set(offsetHeader, strconv.FormatInt(offset, 10))
	w.WriteHeader(http.StatusNoContent)
}

// give is the answer to a GET: what is written into the pipe.
func (p *serverPipe) give(w http.ResponseWriter, r *http.Request, ask pipeRequest) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{})
	turn, ok := p.out.begin(ask.offset)
	switch {
	case !ok:
		http.Error(w, errGap.Error(), http.StatusConflict)
		return
	case p.out.over():
		p.gone(w)
		return
	}
	w.Header().Set(offsetHeader, strconv.FormatInt(ask.offset, 10))
	if ask.poll {
		p.poll(w, r, rc, turn, ask.wait)
	} else {
		p.stream(w, r, rc, turn)
	}
}

// gone tells the client that nothing follows.
func (p *serverPipe) gone(w http.ResponseWriter) {
	p.set.remove(p)
	w.Header().Del(offsetHeader)
	http.Error(w, "the pipe is over", http.StatusGone)
}

// stream gives what there is as soon as there is something.
func (p *serverPipe) stream(w http.ResponseWriter, r *http.Request, rc *http.ResponseController, turn int) {
	if rc.Flush() != nil { // the client knows that it is served
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamed)
	defer cancel()
	for {
		n, err := p.out.ready(ctx, turn)
		if err != nil || !p.copy(w, rc, turn, n) || rc.Flush() != nil {
			return
		}
	}
}

// poll gives what there is at one moment.
func (p *serverPipe) poll(w http.ResponseWriter, r *http.Request, rc *http.ResponseController, turn int, wait time.Duration) {
	p.paced()
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	n, _ := p.out.ready(ctx, turn)
	if n == 0 && p.out.over() {
		p.gone(w)
		return
	}
	n = min(n, maxBody)
	w.Header().Set("Content-Length", strconv.Itoa(n))
	p.copy(w, rc, turn, n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.answered = n, time.Now()
}

// paced fits what may wait to how long the last answer took the client.
func (p *serverPipe) paced() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last > 0 {
		p.size.took(p.last, time.Since(p.answered))
		p.out.resize(p.size.size)
	}
}

// copy gives n bytes and reports whether it could.
func (p *serverPipe) copy(w io.Writer, rc *http.ResponseController, turn, n int) bool {
	buf, done := p.set.memory.buffer()
	defer done()
	for n > 0 {
		m, err := p.out.readTurn(turn, buf[:min(n, len(buf))])
		if m == 0 || err != nil {
			return false
		}
		_ = rc.SetWriteDeadline(time.Now().Add(bodyPatience))
		if _, err := w.Write(buf[:m]); err != nil {
			return false
		}
		n -= m
	}
	return true
}
