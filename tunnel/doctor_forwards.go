package tunnel

import (
	"context"
	"errors"
	"fmt"

	"culvert/mux"
	"culvert/mux/carrier"
)

// ForwardError is why a forward would not work, although the tunnel does.
type ForwardError struct {
	Flag    string // -L or -R
	Forward Forward
	AtFar   bool // it fails at the server; otherwise here
	Listens bool // it is the listener that fails; otherwise the target
	Err     error
}

func (e *ForwardError) Error() string {
	end, what := "here", e.Forward.Target+" cannot be reached"
	if e.AtFar {
		end = "at the server"
	}
	if e.Listens {
		what = "cannot listen at " + bindAddress(e.Forward.Bind, e.Forward.Port)
	}
	return fmt.Sprintf("%s %s: %s, %s: %v", e.Flag, e.Forward, end, what, e.Err)
}

func (e *ForwardError) Unwrap() error { return e.Err }

// forwards tries the way of each forward: both of its ends, as far as they are not the
// client's own listener, which a client that runs may have.
func (d *Doctor) forwards(ctx context.Context, dialer carrier.Dialer) {
	cfg := d.client.cfg
	if len(cfg.Local)+len(cfg.Remote) == 0 {
		return
	}
	v, err := d.visit(ctx, dialer)
	if err != nil {
		d.failed(stepForward, err)
		d.symptoms.forwards = append(d.symptoms.forwards, err)
		d.symptoms.broken = len(cfg.Local) + len(cfg.Remote)
		return
	}
	defer v.end()
	for _, f := range cfg.Local {
		if err := v.reach(ctx, d.client, f.Target); err != nil {
			d.wrong(&ForwardError{Flag: "-L", Forward: f, AtFar: true, Err: err})
			d.symptoms.broken++
			continue
		}
		d.found(stepForward, VerdictOK, "-L %s: the server reaches %s", f, f.Target)
	}
	for _, f := range cfg.Remote {
		if !d.remote(ctx, v, f) {
			d.symptoms.broken++
		}
	}
}

// remote tries both ends of a remote forward and reports whether neither failed.
func (d *Doctor) remote(ctx context.Context, v *visit, f Forward) (works bool) {
	dial := &dialer{guard: d.client.guard, timeout: d.client.cfg.DialTimeout}
	conn, grant, err := dial.dial(ctx, f.Target)
	if err != nil {
		d.wrong(&ForwardError{Flag: "-R", Forward: f, Err: err})
	} else {
		grant.Release()
		conn.Close()
	}
	answer, cancel := context.WithTimeout(ctx, d.client.cfg.ConnectWait)
	defer cancel()
	listening, listenErr := v.session.Listen(answer, bindAddress(f.Bind, f.Port))
	switch refused, _ := errors.AsType[*mux.Error](listenErr); {
	case listenErr == nil:
		v.session.Unlisten(listening.Number)
		if err == nil {
			d.found(stepForward, VerdictOK, "-R %s: the server can listen at %s, and %s answers here", f, listening.Address, f.Target)
		}
	case refused != nil && refused.Reason == inUseByAnother:
		d.found(stepForward, VerdictWarn, "-R %s: another session listens at the server already, perhaps that of a client that runs", f)
	default:
		d.wrong(&ForwardError{Flag: "-R", Forward: f, AtFar: true, Listens: true, Err: listenErr})
		return false
	}
	return err == nil
}

// wrong notes what fails at one end of a forward.
func (d *Doctor) wrong(err *ForwardError) {
	d.failed(stepForward, err)
	d.symptoms.forwards = append(d.symptoms.forwards, err)
}

// reach has the server dial target.
func (v *visit) reach(ctx context.Context, c *Client, target string) error {
	st, err := v.session.Open(ctx, mux.Header{Kind: mux.KindDial, Target: target})
	if err != nil {
		return err
	}
	defer st.Close()
	ctx, cancel := context.WithTimeout(ctx, max(c.cfg.ConnectWait, c.cfg.OpenTimeout))
	defer cancel()
	return st.Reply(ctx)
}
