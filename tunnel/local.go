package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"culvert/auth"
	"culvert/mux"
)

// SetForwards changes the forwards. Those that go listen no more, here or at the
// server; connections of local ones go on, and those of remote ones end, since their
// target is not allowed any more. Those that come listen. Nothing happens to the
// others, and one whose target alone changes keeps its listener. When it fails
// (ErrConfig, ErrListen) the forwards are as before. It waits, until ctx ends, for Run
// to have begun, and for names of addresses to listen at; the server is asked later,
// and again while it refuses. It is called once at a time.
func (c *Client) SetForwards(ctx context.Context, local, remote []Forward) error {
	var errs []error
	for _, f := range slices.Concat(local, remote) {
		errs = append(errs, f.check())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	select {
	case <-c.listening:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	before, remotes := c.local.now(), c.remote.forwards()
	c.guard.Use(granted(slices.Concat(before, local), slices.Concat(remotes, remote)))
	if err := c.local.set(ctx, local); err != nil {
		c.guard.Use(granted(before, remotes))
		return err
	}
	c.remote.set(remote)
	c.guard.Use(granted(local, remote))
	return nil
}

// locals are a client's local forwards. Which they are may change while they run.
type locals struct {
	client *Client
	loops  sync.WaitGroup
	conns  sync.WaitGroup

	mu        sync.Mutex // guards the rest
	accepting context.Context
	stop      context.CancelFunc
	running   []*localForward
}

// localForward is a listener, or two for localhost, and who accepts from it at the moment. Its fields are
// guarded by locals.mu.
type localForward struct {
	Forward
	bound  []bound            // the listener, or two for localhost
	forget func() bool        // keeps the end of all from closing the listeners
	leave  context.CancelFunc // ends the accept loops and lets the listeners be
	left   chan struct{}      // closed when they have ended
}

// addr is where it listens; for localhost, the IPv4 address.
func (l *localForward) addr() string { return l.bound[0].addr().String() }

// start listens for all forwards until ctx ends or end is called, which it has to be,
// also when start fails.
func (ls *locals) start(ctx context.Context, forwards []Forward) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.accepting, ls.stop = context.WithCancel(ctx)
	return ls.open(ctx, forwards)
}

// end closes all listeners, and waits for the connections that came in through them.
func (ls *locals) end() {
	ls.mu.Lock()
	ls.stop()
	for _, l := range ls.running {
		l.close()
	}
	ls.mu.Unlock()
	ls.loops.Wait()
	ls.conns.Wait()
}

// now are the forwards that there are.
func (ls *locals) now() (forwards []Forward) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.running {
		forwards = append(forwards, l.Forward)
	}
	return forwards
}

// listening returns where each forward listens.
func (ls *locals) listening() (addresses []string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.running {
		addresses = append(addresses, "-L "+l.addr()+" to "+l.Target)
	}
	return addresses
}

// set makes forwards what there is, and changes nothing if it fails. Connections go
// on whatever happens to their forward, and so do listeners whose target alone
// changes.
func (ls *locals) set(ctx context.Context, forwards []Forward) error {
	before := ls.now()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.accepting.Err() != nil {
		return errStopping
	}
	// An address may pass from one forward to another, so those that go, go first.
	ls.close(forwards)
	if err := ls.open(ctx, forwards); err != nil {
		ls.close(before)
		return errors.Join(err, ls.open(ctx, before))
	}
	return nil
}

// close closes the listeners that none of forwards needs. Called with mu held.
func (ls *locals) close(forwards []Forward) {
	ls.running = slices.DeleteFunc(ls.running, func(l *localForward) bool {
		if slices.ContainsFunc(forwards, l.sameListener) {
			return false
		}
		l.leave()
		<-l.left
		l.forget()
		l.close()
		ls.client.log.Info("forward closed", keyForward, "local "+l.String(), keyAddress, l.addr())
		return true
	})
}

// open sees to it that there is a listener for each of forwards, with its target.
// Called with mu held.
func (ls *locals) open(ctx context.Context, forwards []Forward) error {
	for _, f := range forwards {
		i := slices.IndexFunc(ls.running, func(l *localForward) bool { return l.sameListener(f) })
		if i < 0 {
			opened, err := ls.client.bind(ctx, f)
			if err != nil {
				return fmt.Errorf("%w for local forward %s: %w", ErrListen, f, err)
			}
			l := &localForward{Forward: f, bound: opened}
			l.forget = context.AfterFunc(ls.accepting, l.closeListeners)
			ls.running = append(ls.running, l)
			ls.run(l)
			continue
		}
		if l := ls.running[i]; l.Target != f.Target {
			l.leave()
			<-l.left
			l.Target = f.Target
			for _, b := range l.bound {
				_ = b.SetDeadline(time.Time{})
			}
			ls.run(l)
		}
	}
	return nil
}

// run accepts connections for l. Called with mu held.
func (ls *locals) run(l *localForward) {
	c, header := ls.client, mux.Header{Kind: mux.KindDial, Target: l.Target}
	f := &forwarder{
		target:      l.Target,
		open:        func(ctx context.Context, _ net.Addr) (stream, string, error) { return c.open(ctx, header) },
		connectWait: c.cfg.ConnectWait, openTimeout: c.cfg.OpenTimeout,
		pending: make(chan struct{}, c.cfg.MaxPending),
		log:     c.log.with(keyForward, "local "+l.String()),
	}
	c.log.Info("forward listening", keyForward, "local "+l.String(), keyAddress, l.addr())
	var accepting context.Context
	accepting, l.leave = context.WithCancel(ls.accepting)
	left := make(chan struct{})
	l.left = left
	ls.loops.Go(func() {
		defer close(left)
		f.runAll(accepting, l.bound, func(ln *net.TCPListener) net.Listener { return &turn{TCPListener: ln} }, &ls.conns)
	})
}

// close gives the addresses back.
func (l *localForward) close() {
	for _, b := range l.bound {
		b.close()
	}
}

func (l *localForward) closeListeners() {
	for _, b := range l.bound {
		_ = b.Close()
	}
}

// sameListener reports whether one listener is enough for both. The system's choice
// of a port is made for one forward.
func (f Forward) sameListener(other Forward) bool {
	return f.Bind == other.Bind && f.Port == other.Port && (f.Port != 0 || f.Target == other.Target)
}

// turn is one accept loop's use of a listener: Close ends the loop and leaves the
// listener, with the connections that wait in it, to the next one.
type turn struct {
	*net.TCPListener
	once sync.Once
}

func (t *turn) Close() (err error) {
	t.once.Do(func() { err = t.SetDeadline(time.Unix(1, 0)) })
	return err
}

// bind opens the listeners of a local forward, as the client's guard allows.
func (c *Client) bind(ctx context.Context, f Forward) ([]bound, error) {
	host, addr, err := bindAddr(ctx, bindAddress(f.Bind, f.Port), nil)
	if err != nil {
		return nil, err
	}
	grant, err := c.guard.Listen("", auth.TCP, host, addr)
	if err != nil {
		return nil, err
	}
	opened, err := listenAt(ctx, c.guard, "", host, grant, c.log)
	for _, b := range opened {
		b.grant.OnRevoke(func(error) { _ = b.Close() })
	}
	return opened, err
}
