package tunnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"culvert/mux"
)

// remoteForwards are a client's remote forwards. Which they are may change.
type remoteForwards struct {
	mu      sync.Mutex
	current []*remoteForward
	changed chan struct{} // closed and replaced by set
}

// newRemoteForwards are those that a client is made with.
func newRemoteForwards(forwards []Forward) *remoteForwards {
	fs := &remoteForwards{changed: make(chan struct{})}
	for _, f := range forwards {
		fs.current = append(fs.current, &remoteForward{Forward: f, required: true})
	}
	return fs
}

// now returns the forwards, and what is closed when they change.
func (fs *remoteForwards) now() ([]*remoteForward, <-chan struct{}) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.current, fs.changed
}

// forwards are those that there are.
func (fs *remoteForwards) forwards() (all []Forward) {
	current, _ := fs.now()
	for _, f := range current {
		all = append(all, f.now())
	}
	return all
}

// set makes forwards what there is. One whose target alone changes stays the same.
func (fs *remoteForwards) set(forwards []Forward) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var next []*remoteForward
	for _, f := range forwards {
		i := slices.IndexFunc(fs.current, func(old *remoteForward) bool { return old.now().sameListener(f) })
		if i < 0 {
			next = append(next, &remoteForward{Forward: f})
			continue
		}
		fs.current[i].retarget(f.Target)
		next = append(next, fs.current[i])
	}
	fs.current = next
	close(fs.changed)
	fs.changed = make(chan struct{})
}

// remoteForward is a remote forward of a client, over all its sessions.
type remoteForward struct {
	required bool // the client is of no use without it, as far as is known; never changes

	mu      sync.Mutex // guards the rest
	Forward            // Bind and Port never change
	last    string     // where the server listened for it last
}

func (f *remoteForward) now() Forward {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Forward
}

func (f *remoteForward) retarget(target string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Target = target
}

// address is where the server listened for f last, with the target: "ADDRESS to TARGET".
func (f *remoteForward) address() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "-R " + f.last + " to " + f.Target
}

// lister is what remotes need of a *mux.Session.
type lister interface {
	Listen(ctx context.Context, bind string) (mux.Forward, error)
	Unlisten(forward uint32)
}

// remotes are a client's remote forwards within one session.
type remotes struct {
	session  lister
	settings Settings
	log      events

	mu      sync.Mutex
	numbers map[uint32]*remoteForward // that the server listens for
	asked   int                       // requests without an answer
	changed chan struct{}             // closed and replaced with each answer
}

func newRemotes(session lister, settings Settings, log events) *remotes {
	return &remotes{
		session: session, settings: settings, log: log,
		numbers: make(map[uint32]*remoteForward), changed: make(chan struct{}),
	}
}

// listen asks the server once to listen for f. A forward whose port the server
// chose asks for the same port again.
func (r *remotes) listen(ctx context.Context, f *remoteForward) (mux.Forward, error) {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	bind := bindAddress(f.Bind, f.Port)
	if f.Port != 0 || last == "" {
		return r.request(ctx, f, bind)
	}
	if _, port, err := splitBind(last); err == nil {
		last = bindAddress(f.Bind, int(port))
	}
	listening, err := r.request(ctx, f, last)
	if err != nil && ctx.Err() == nil {
		return r.request(ctx, f, bind)
	}
	return listening, err
}

func (r *remotes) request(ctx context.Context, f *remoteForward, bind string) (mux.Forward, error) {
	answer, cancel := context.WithTimeout(ctx, r.settings.ConnectWait)
	defer cancel()
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	listening, err := r.session.Listen(answer, bind)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked--
	close(r.changed)
	r.changed = make(chan struct{})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", r.settings.ConnectWait)
		}
		return mux.Forward{}, err
	}
	if err := ctx.Err(); err != nil { // nobody wants it any more
		r.session.Unlisten(listening.Number)
		return mux.Forward{}, err
	}
	r.numbers[listening.Number] = f
	f.mu.Lock()
	f.last = listening.Address
	f.mu.Unlock()
	r.log.Info("forward listening", keyForward, "remote "+f.now().String(), keyAddress, listening.Address)
	return listening, nil
}

// ended notes that the server has ended a forward.
func (r *remotes) ended(number uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.numbers, number)
	close(r.changed)
	r.changed = make(chan struct{})
}

// drop gives up f, whose requests have been told to end.
func (r *remotes) drop(f *remoteForward) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for number, other := range r.numbers {
		if other == f {
			r.session.Unlisten(number)
			delete(r.numbers, number)
			r.log.Info("forward closed", keyForward, "remote "+f.now().String())
		}
	}
}

// keep has the server listen for f until ctx ends: it asks until the server listens, and
// again when the server has ended that. It begins with listening, unless that is nil.
func (r *remotes) keep(ctx context.Context, f *remoteForward, listening *mux.Forward) {
	var pause backoff
	for {
		var err error
		if listening == nil {
			var answer mux.Forward
			if answer, err = r.listen(ctx, f); err == nil {
				listening = &answer
			}
		}
		if listening != nil {
			pause.reset()
			select {
			case e := <-listening.Ended:
				r.ended(listening.Number)
				listening, err = nil, e
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		wait := pause.next(time.Second, 30*time.Second)
		r.log.Warn("forward not listening", keyForward, "remote "+f.now().String(), keyError, err, keyNext, wait)
		if !sleep(ctx, wait) {
			return
		}
	}
}

// target is what to dial for a stream of this forward. The answer to the
// request may still be on its way when the first stream is here.
func (r *remotes) target(ctx context.Context, forward string) (string, error) {
	unknown := &TargetError{Code: mux.NotFound, Reason: "no such forward"}
	number, err := strconv.ParseUint(forward, 10, 32)
	if err != nil {
		return "", unknown
	}
	ctx, cancel := context.WithTimeout(ctx, r.settings.OpenTimeout)
	defer cancel()
	for {
		r.mu.Lock()
		f := r.numbers[uint32(number)]
		asked, changed := r.asked, r.changed
		r.mu.Unlock()
		if f != nil {
			return f.now().Target, nil
		}
		if asked == 0 {
			return "", unknown
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", unknown
		}
	}
}

// listening returns where the server listens for each of forwards, nil unless it does
// for all of them, and what is closed when that may have changed.
func (r *remotes) listening(forwards []*remoteForward) (addresses []string, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	addresses = make([]string, 0, len(forwards))
	for _, f := range forwards {
		if !slices.Contains(slices.Collect(maps.Values(r.numbers)), f) {
			return nil, r.changed
		}
		addresses = append(addresses, f.address())
	}
	return addresses, r.changed
}

// release gives the server's addresses back while the session goes on, for the
// session that follows. Streams that are on their way still find their target.
func (r *remotes) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for number := range r.numbers {
		r.session.Unlisten(number)
	}
}
