package netfault

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direction names one half of the relayed traffic, as seen from whoever dialled the relay.
type Direction int

const (
	Up   Direction = iota // from the dialling side to the target
	Down                  // from the target to the dialling side
)

const (
	chunkSize   = 64 << 10 // bytes moved at once
	delayChunks = 1024     // chunks in flight in one direction while a delay is set
	dialTimeout = 5 * time.Second
)

// Relay passes TCP connections on to one target. All methods may be called concurrently.
type Relay struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup
	accepted atomic.Int64
	cuts     atomic.Int64
	bytes    [2]atomic.Int64
	flips    atomic.Int64

	mu     sync.Mutex
	closed bool
	pairs  map[*pair]struct{}
	faults faults
	flip   [2]*flipper
	resume chan struct{} // closed when a stall ends; nil while there is none
}

// faults are the settings that a pump reads again for every chunk.
type faults struct {
	cutAfter  [2]int64
	blackHole bool
	rate      int64
	delay     time.Duration
}

// flipper damages one direction; it goes on from connection to connection, so that a seed gives one schedule.
type flipper struct {
	rng   *rand.Rand
	every int64
	skip  int64 // bytes left alone at the start of each connection
	next  int64 // bytes until the next damaged one
}

// Listen starts a relay to target on a free port of 127.0.0.1.
func Listen(target string) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{target: target, listener: listener, pairs: make(map[*pair]struct{})}
	r.wg.Go(r.accept)
	return r, nil
}

// Addr is the address that the relay listens on.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Close resets every connection, stops listening and waits for the relay's goroutines.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	err := r.listener.Close()
	r.Stall(false)
	r.Cut()
	r.wg.Wait()
	return err
}

// Accepted is the number of connections accepted so far.
func (r *Relay) Accepted() int { return int(r.accepted.Load()) }

// Cuts is the number of connections that the relay has reset so far.
func (r *Relay) Cuts() int { return int(r.cuts.Load()) }

// Flips is the number of bits flipped so far.
func (r *Relay) Flips() int { return int(r.flips.Load()) }

// Bytes is how many bytes were passed on in direction d so far.
func (r *Relay) Bytes(d Direction) int64 { return r.bytes[d].Load() }

// Open is the number of connections that are open now.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pairs)
}

// Cut resets both ends of every open connection at once and says how many there were.
func (r *Relay) Cut() int {
	r.mu.Lock()
	pairs := make([]*pair, 0, len(r.pairs))
	for p := range r.pairs {
		pairs = append(pairs, p)
	}
	r.mu.Unlock()
	for _, p := range pairs {
		p.cut()
	}
	return len(pairs)
}

// CutEvery cuts everything after each interval until the returned function is called.
func (r *Relay) CutEvery(interval time.Duration) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				r.Cut()
			case <-done:
				return
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() { close(done) })
		<-ended
	}
}

// CutAfter cuts each connection as soon as it has carried n bytes in direction d; 0 ends it.
func (r *Relay) CutAfter(d Direction, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults.cutAfter[d] = n
}

// BlackHole swallows everything in both directions, ends of connections too, while it is on. What was
// open when it was on stays dead afterwards, as it does behind a firewall that forgot the flow.
func (r *Relay) BlackHole(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults.blackHole = on
	if on {
		for p := range r.pairs {
			p.dead.Store(true)
		}
	}
}

// Stall stops passing bytes on, in both directions, until it is called with false. Nothing is lost:
// the senders meet back-pressure.
func (r *Relay) Stall(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case on && r.resume == nil:
		r.resume = make(chan struct{})
	case !on && r.resume != nil:
		close(r.resume)
		r.resume = nil
	}
}

// FlipBits flips one bit about every n bytes in direction d, at places that depend on seed and n only.
// The first skip bytes of each connection pass unharmed. n of 0 ends it.
func (r *Relay) FlipBits(d Direction, n, skip int64, seed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == 0 {
		r.flip[d] = nil
		return
	}
	f := &flipper{rng: rand.New(rand.NewPCG(seed, uint64(d))), every: n, skip: skip}
	f.next = f.rng.Int64N(2 * n)
	r.flip[d] = f
}

// Limit bounds each direction of each connection to rate bytes per second; 0 ends it.
func (r *Relay) Limit(rate int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults.rate = rate
}

// Delay passes everything on later by d, without a limit to the rate other than 64 MiB in flight.
// It holds for connections that are accepted from now on.
func (r *Relay) Delay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults.delay = d
}

// Inject writes p to the receiving end of direction d of every open connection, between two chunks of
// what really passes, and says how many there were.
func (r *Relay) Inject(d Direction, p []byte) int {
	r.mu.Lock()
	pairs := make([]*pair, 0, len(r.pairs))
	for p := range r.pairs {
		pairs = append(pairs, p)
	}
	r.mu.Unlock()
	n := 0
	for _, pair := range pairs {
		if pair.write(d, p) == nil {
			n++
		}
	}
	return n
}

func (r *Relay) accept() {
	for {
		conn, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		r.accepted.Add(1)
		r.wg.Go(func() { r.serve(conn.(*net.TCPConn)) })
	}
}

func (r *Relay) serve(near *net.TCPConn) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.Dial("tcp", r.target)
	if err != nil {
		_ = near.SetLinger(0)
		_ = near.Close()
		return
	}
	p := &pair{relay: r, done: make(chan struct{})}
	p.ends[Up], p.ends[Down] = conn.(*net.TCPConn), near

	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		p.shut(true)
		return
	}
	r.pairs[p] = struct{}{}
	p.dead.Store(r.faults.blackHole)
	p.delay = r.faults.delay
	r.mu.Unlock()

	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(Up) })
	pumps.Go(func() { p.pump(Down) })
	pumps.Wait()
	p.shut(false)

	r.mu.Lock()
	delete(r.pairs, p)
	r.mu.Unlock()
}

// settings returns the faults in force and, while the relay is stalled, what to wait for.
func (r *Relay) settings() (faults, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.faults, r.resume
}

// damage flips the bits of p that are due; seen is how many bytes of the connection came before p.
func (r *Relay) damage(d Direction, p []byte, seen int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.flip[d]
	if f == nil {
		return
	}
	if unharmed := f.skip - seen; unharmed > 0 {
		p = p[min(unharmed, int64(len(p))):]
	}
	for f.next < int64(len(p)) {
		p[f.next] ^= 1 << f.rng.IntN(8)
		r.flips.Add(1)
		f.next += 1 + f.rng.Int64N(2*f.every)
	}
	f.next -= int64(len(p))
}

// maxLag is what a direction that is late may catch up on.
const maxLag = 5 * time.Millisecond

// pair is one relayed connection.
type pair struct {
	relay *Relay
	ends  [2]*net.TCPConn // ends[d] is where direction d is written to
	locks [2]sync.Mutex   // serialise writes to ends[d]
	dead  atomic.Bool     // swallowed by a black hole, for good
	delay time.Duration   // set at construction
	free  [2]time.Time    // when direction d has sent what it was given, at its rate; owned by its pump
	once  sync.Once
	done  chan struct{} // closed with the ends
}

type chunk struct {
	data []byte
	due  time.Time
}

// shut closes both connections, with a reset if asked, and tells whether they were open.
func (p *pair) shut(reset bool) bool {
	first := false
	p.once.Do(func() {
		first = true
		close(p.done)
		for _, conn := range p.ends {
			if reset {
				_ = conn.SetLinger(0)
			}
			_ = conn.Close()
		}
	})
	return first
}

func (p *pair) cut() {
	if p.shut(true) {
		p.relay.cuts.Add(1)
	}
}

// pump moves one direction until its end, or until the pair is closed.
func (p *pair) pump(d Direction) {
	if p.delay == 0 {
		buf := make([]byte, chunkSize)
		for seen := int64(0); ; {
			n, err := p.read(d, buf)
			if n > 0 && !p.deliver(d, buf[:n], seen) {
				return
			}
			seen += int64(n)
			if err != nil {
				p.end(d, err)
				return
			}
		}
	}

	queue := make(chan chunk, delayChunks)
	var delivery sync.WaitGroup
	delivery.Go(func() {
		var seen int64
		for c := range queue {
			if !p.wait(time.Until(c.due)) || !p.deliver(d, c.data, seen) {
				break
			}
			seen += int64(len(c.data))
		}
		for range queue { // the reader never waits for a pump that has gone
		}
	})
	var end error
	for end == nil {
		buf := make([]byte, chunkSize)
		var n int
		n, end = p.read(d, buf)
		if n > 0 {
			queue <- chunk{data: buf[:n], due: time.Now().Add(p.delay)}
		}
	}
	close(queue)
	delivery.Wait()
	p.end(d, end)
}

func (p *pair) read(d Direction, buf []byte) (int, error) {
	for {
		n, err := p.ends[1-d].Read(buf)
		if n > 0 && p.dead.Load() {
			n = 0
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// deliver passes one chunk on under the faults in force and tells whether the direction goes on.
func (p *pair) deliver(d Direction, data []byte, seen int64) bool {
	f, resume := p.relay.settings()
	if resume != nil {
		select {
		case <-resume:
		case <-p.done:
			return false
		}
		f, _ = p.relay.settings()
	}
	if p.dead.Load() {
		return true
	}
	last := false
	if limit := f.cutAfter[d]; limit > 0 && seen+int64(len(data)) >= limit {
		data, last = data[:max(0, limit-seen)], true
	}
	p.relay.damage(d, data, seen)
	if err := p.send(d, data, f.rate); err != nil {
		p.end(d, err)
		return false
	}
	p.relay.bytes[d].Add(int64(len(data)))
	if last {
		p.cut()
		return false
	}
	return true
}

// send writes data, at a rate if there is one: in small pieces, of which each arrives when a line of that
// rate would have carried it to its end.
func (p *pair) send(d Direction, data []byte, rate int64) error {
	if rate <= 0 {
		return p.write(d, data)
	}
	piece := max(1500, int(rate/1000)) // a millisecond's
	for len(data) > 0 {
		n := min(piece, len(data))
		// By the clock of what was sent, so that a wait that takes longer than asked costs no rate.
		if idle := time.Now().Add(-maxLag); p.free[d].Before(idle) {
			p.free[d] = time.Now()
		}
		p.free[d] = p.free[d].Add(time.Duration(int64(n) * int64(time.Second) / rate))
		if !p.wait(time.Until(p.free[d])) {
			return net.ErrClosed
		}
		if err := p.write(d, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (p *pair) write(d Direction, data []byte) error {
	p.locks[d].Lock()
	defer p.locks[d].Unlock()
	_, err := p.ends[d].Write(data)
	return err
}

// end passes on how a direction ended: an end of file as a half-close, anything else as a reset. Behind a
// black hole the other side notices nothing.
func (p *pair) end(d Direction, err error) {
	switch {
	case p.dead.Load():
	case errors.Is(err, io.EOF):
		_ = p.ends[d].CloseWrite()
	default:
		p.shut(true)
	}
}

func (p *pair) wait(d time.Duration) bool {
	if d <= 0 {
		select {
		case <-p.done:
			return false
		default:
			return true
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.done:
		return false
	}
}
