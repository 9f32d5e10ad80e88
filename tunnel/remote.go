package tunnel

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"culvert/mux"
)

// remoteForward is a remote forward of a client, over all its sessions.
type remoteForward struct {
	Forward

	mu   sync.Mutex
	last string // where the server listened for it last
}

// lister is what remotes need of a *mux.Session.
type lister interface {
	Listen(ctx context.Context, bind string) (forward uint32, address string, err error)
	Unlisten(forward uint32)
}

// remotes are a client's remote forwards within one session.
type remotes struct {
	session  lister
	settings Settings
	log      events

	mu      sync.Mutex
	targets map[string]string // by the forward's number, as in stream headers
	numbers []uint32
	asked   int           // requests without an answer
	changed chan struct{} // closed and replaced with each answer
}

func newRemotes(session lister, settings Settings, log events) *remotes {
	return &remotes{
		session: session, settings: settings, log: log,
		targets: make(map[string]string), changed: make(chan struct{}),
	}
}

// listen asks the server once to listen for f. A forward whose port the server
// chose asks for the same port again.
func (r *remotes) listen(ctx context.Context, f *remoteForward) error {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	bind := bindAddress(f.Bind, f.Port)
	if f.Port != 0 || last == "" {
		return r.request(ctx, f, bind)
	}
	err := r.request(ctx, f, last)
	if err != nil && ctx.Err() == nil {
		err = r.request(ctx, f, bind)
	}
	return err
}

func (r *remotes) request(ctx context.Context, f *remoteForward, bind string) error {
	ctx, cancel := context.WithTimeout(ctx, r.settings.ConnectWait)
	defer cancel()
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	number, address, err := r.session.Listen(ctx, bind)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked--
	close(r.changed)
	r.changed = make(chan struct{})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", r.settings.ConnectWait)
		}
		return err
	}
	r.targets[strconv.FormatUint(uint64(number), 10)] = f.Target
	r.numbers = append(r.numbers, number)
	f.mu.Lock()
	f.last = address
	f.mu.Unlock()
	r.log.Info("forward listening", keyForward, "remote "+f.String(), keyAddress, address)
	return nil
}

// keep asks for f until the server listens or ctx has ended.
func (r *remotes) keep(ctx context.Context, f *remoteForward) {
	var pause backoff
	for {
		err := r.listen(ctx, f)
		if err == nil || ctx.Err() != nil {
			return
		}
		wait := pause.next(time.Second, 30*time.Second)
		r.log.Warn("forward not listening", keyForward, "remote "+f.String(), keyError, err, keyNext, wait)
		if !sleep(ctx, wait) {
			return
		}
	}
}

// target is what to dial for a stream of this forward. The answer to the
// request may still be on its way when the first stream is here.
func (r *remotes) target(ctx context.Context, forward string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.settings.OpenTimeout)
	defer cancel()
	for {
		r.mu.Lock()
		target, known := r.targets[forward]
		asked, changed := r.asked, r.changed
		r.mu.Unlock()
		if known {
			return target, nil
		}
		if asked == 0 {
			return "", &TargetError{Code: mux.NotFound, Reason: "no such forward"}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", &TargetError{Code: mux.NotFound, Reason: "no such forward"}
		}
	}
}

// release gives the server's addresses back while the session goes on, for the
// session that follows.
func (r *remotes) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.numbers {
		r.session.Unlisten(n)
	}
	r.numbers = nil
}
