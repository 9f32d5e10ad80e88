package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/mux/link"
)

// Verdict is what a Finding means for a tunnel.
type Verdict string

// The verdicts.
const (
	VerdictOK   Verdict = "ok"
	VerdictWarn Verdict = "warn" // works, but look at it
	VerdictFail Verdict = "FAIL" // no tunnel this way
	VerdictSkip Verdict = "skip" // not looked at; Text says why
)

// Finding is what a Doctor found in one step.
type Finding struct {
	Step    string  `json:"step"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`            // one line; strings of peers are quoted
	Value   float64 `json:"value,omitempty"` // what was measured, in Unit
	Unit    string  `json:"unit,omitempty"`  // "s" or "bytes/s"
	Err     error   `json:"-"`               // of VerdictFail: what Text says
}

// Diagnosis is what all findings amount to.
type Diagnosis struct {
	Works  bool     `json:"works"`           // a tunnel would come up
	Broken int      `json:"broken_forwards"` // forwards that would not work all the same
	Advice []string `json:"advice"`          // sentences; empty if there is nothing to say
	Err    error    `json:"-"`               // why it or a forward does not work, as a client would have it; nil if all does
}

// Doctor goes the way to a server step by step, with the settings of a client.
type Doctor struct {
	Config ClientConfig
	// Found is told each finding as it is made.
	Found func(Finding)
	// Long is how long to wait for connections to be cut, for being idle or for
	// their age; 0: not at all.
	Long time.Duration

	client   *Client
	dialer   carrier.Dialer // to the server that is looked at
	symptoms symptoms
}

// symptoms are what advice is made of.
type symptoms struct {
	heartbeat time.Duration

	front    string  // who answers in front of the server, as far as it says so; quoted
	upgrade  error   // why no WebSocket comes up; nil: one does
	requests error   // why no HTTP pipe comes up; nil: one does, or none was needed
	worked   bool    // there was a carrier
	forwards []error // why forwards do not work; two for one that fails at both ends
	broken   int     // forwards that do not work
	secure   bool    // the server's address is a wss:// one

	idle, loaded time.Duration // of an echo, beside nothing and beside the worse transfer
	quiet        time.Duration // after which idle connections are cut; 0: none was
	silent       bool          // without a word
	age          time.Duration // at which connections are cut; 0: none was
}

// Examine looks at everything that it can, of each server. It returns when ctx ends,
// with what it knows by then. Its errors are those of [NewClient].
func (d *Doctor) Examine(ctx context.Context) (Diagnosis, error) {
	c, err := NewClient(d.Config)
	if err != nil {
		return Diagnosis{}, err
	}
	d.client = c
	sum := Diagnosis{Advice: []string{}}
	for _, dialer := range c.dialers {
		d.dialer, d.symptoms = *dialer, symptoms{heartbeat: c.cfg.Heartbeat, secure: dialer.URL.Scheme == "wss" || dialer.URL.Scheme == "https"}
		prefix := ""
		if len(c.dialers) > 1 {
			prefix = dialer.URL.Host + ": "
			d.found(stepServer, VerdictOK, "%s", dialer.URL.Host)
		}
		d.examine(ctx)
		for _, advice := range d.symptoms.advice() {
			sum.Advice = append(sum.Advice, prefix+advice)
		}
		if d.symptoms.worked {
			if !sum.Works {
				sum.Err = nil // of a server before this one
			}
			sum.Works = true
			sum.Broken = max(sum.Broken, d.symptoms.broken)
			if sum.Err == nil {
				sum.Err = d.symptoms.tellingForward()
			}
		} else if !sum.Works && sum.Err == nil {
			sum.Err = cmp.Or(d.symptoms.telling(), context.Cause(ctx))
		}
	}
	return sum, nil
}

func (d *Doctor) examine(ctx context.Context) {
	if err := d.way(ctx); err != nil {
		d.symptoms.upgrade = err
		return
	}
	if way := d.carriers(ctx); way != nil {
		d.transfer(ctx, *way)
		d.forwards(ctx, *way)
		if d.Long > 0 && ctx.Err() == nil {
			d.client.log.Info("waiting for connections to be cut", "for", d.Long)
			d.limits(ctx, *way)
		}
	}
}

func (d *Doctor) found(step string, v Verdict, format string, args ...any) {
	d.Found(Finding{Step: step, Verdict: v, Text: fmt.Sprintf(format, args...)})
}

func (d *Doctor) failed(step string, err error) {
	d.Found(Finding{Step: step, Verdict: VerdictFail, Text: err.Error(), Err: err})
}

func (d *Doctor) measured(step string, v Verdict, value float64, unit, format string, args ...any) {
	d.Found(Finding{Step: step, Verdict: v, Text: fmt.Sprintf(format, args...), Value: value, Unit: unit})
}

// The steps, in order.
const (
	stepServer    = "server"
	stepResolve   = "resolve"
	stepConnect   = "connect"
	stepProxy     = "proxy"
	stepTLS       = "tls"
	stepHTTP      = "http"
	stepUpgrade   = "websocket"
	stepRequests  = "http carrier"
	stepRoundTrip = "round trip"
	stepDownload  = "download"
	stepUpload    = "upload"
	stepForward   = "forward"
	stepIdle      = "idle limit"
	stepAge       = "lifetime"
)

// way is everything up to the answer to an ordinary request. Its error is one that no
// kind of carrier gets around.
func (d *Doctor) way(ctx context.Context) error {
	in, err := d.dialer.Inspect(ctx)
	if len(in.Addrs) > 0 {
		var addrs []string
		for _, a := range in.Addrs {
			addrs = append(addrs, a.String())
		}
		d.measured(stepResolve, VerdictOK, in.ResolveTime.Seconds(), "s", "%s, in %s", strings.Join(addrs, ", "), rounded(in.ResolveTime))
	}
	if in.Remote != "" {
		d.measured(stepConnect, VerdictOK, in.ConnectTime.Seconds(), "s", "%s, in %s", in.Remote, rounded(in.ConnectTime))
	}
	if in.Proxy != "" {
		d.found(stepProxy, VerdictOK, "%s connects to the server", in.Proxy)
	}
	if in.TLS != nil {
		d.certificate(in.TLS)
	}
	if err != nil {
		dial, ok := errors.AsType[*carrier.DialError](err)
		if !ok || dial.Phase == carrier.PhaseUpgrade {
			d.failed(stepHTTP, err)
			return nil
		}
		d.failed(string(dial.Phase), err)
		var refused *carrier.ProxyError
		if errors.As(err, &refused) && !errors.Is(err, carrier.ErrProxyCredential) {
			return nil // it may pass requests on
		}
		return err
	}
	d.symptoms.front = in.Front()
	who := cmp.Or(d.symptoms.front, "nobody who gives a name")
	d.found(stepHTTP, VerdictOK, "an ordinary request is answered %d %s by %s", in.Status, http.StatusText(in.Status), who)
	return nil
}

func (d *Doctor) certificate(state *tls.ConnectionState) {
	cert := state.PeerCertificates[0]
	verdict, verified := VerdictOK, "verified"
	if len(state.VerifiedChains) == 0 {
		verdict, verified = VerdictWarn, "NOT verified"
	}
	d.found(stepTLS, verdict, "%s, certificate of %q, issued by %q, valid until %s, %s",
		tls.VersionName(state.Version), cert.Subject, cert.Issuer, cert.NotAfter.Format(time.DateOnly), verified)
}

// carriers tries the kinds of carriers and returns the dialer of the first that comes
// up, nil if none does.
func (d *Doctor) carriers(ctx context.Context) *carrier.Dialer {
	var best *carrier.Dialer
	for _, kind := range []struct {
		step string
		mode carrier.Mode
		err  *error
	}{
		{stepUpgrade, carrier.ModeWebSocket, &d.symptoms.upgrade},
		{stepRequests, carrier.ModeHTTP, &d.symptoms.requests},
	} {
		if only := d.dialer.Mode; only != carrier.ModeAuto && only != kind.mode {
			d.found(kind.step, VerdictSkip, "the client is told to use %s only", only)
			*kind.err = errNotTried
			continue
		}
		dialer := d.dialer
		dialer.Mode = kind.mode
		began := time.Now()
		v, err := d.visit(ctx, dialer)
		took := time.Since(began)
		if err == nil {
			if err = v.answers(ctx); err != nil {
				v.end()
			}
		}
		*kind.err = err
		switch {
		case err == nil:
			d.symptoms.worked = true
			how := ""
			if kind.mode == carrier.ModeHTTP {
				how = map[string]string{"stream": ", answers stream", "buffer": ", answers are BUFFERED on the way"}[answers(ctx, dialer.Ladder)]
			}
			if v.carrier.Sealed() {
				how += ", sealed"
				if seal, err := dialer.Seal(); err == nil {
					how += " for the server with the key " + seal.Fingerprint()
				}
			}
			d.measured(kind.step, VerdictOK, took.Seconds(), "s", "comes up in %s, credential accepted%s", rounded(took), how)
			v.end()
			if best == nil {
				best = &dialer
			}
		case best != nil:
			d.found(kind.step, VerdictWarn, "%v", err)
		default:
			d.failed(kind.step, err)
		}
	}
	return best
}

// answers waits a moment for what a carrier over HTTP requests finds out about its
// answers.
func answers(ctx context.Context, l *carrier.Ladder) string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		if how := l.Answers(); how != "" {
			return how
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return ""
}

var errNotTried = errors.New("not tried")

// visit is a session on a single carrier.
type visit struct {
	session *mux.Session
	link    *link.Link
	carrier *carrier.Conn
	lost    chan struct{} // closed when the carrier is lost
	err     error         // why; valid after lost
	cancel  context.CancelFunc
}

// visit dials once. The visit is to be ended.
func (d *Doctor) visit(ctx context.Context, dialer carrier.Dialer) (*visit, error) {
	l := link.New(d.client.cfg.link())
	s, err := mux.Client(l, d.client.cfg.mux(d.client.budget))
	if err != nil {
		l.Close("no session")
		return nil, err
	}
	v := &visit{session: s, link: l, lost: make(chan struct{})}
	ctx, v.cancel = context.WithCancel(ctx)
	attached := make(chan struct{})
	go func() {
		defer close(v.lost)
		v.err = l.Maintain(ctx, link.Redial{
			Secure: d.client.secure(), Fatal: func(error) bool { return true },
			Dial: func(ctx context.Context, hello []byte) (link.Carrier, []byte, error) {
				conn, reply, err := dialer.Dial(ctx, hello)
				if err != nil {
					return nil, nil, err // and not a nil *Conn in an interface
				}
				v.carrier = conn
				return conn, reply, nil
			},
			Attached: func(bool, link.Carrier) { close(attached) },
		})
	}()
	select {
	case <-attached:
		return v, nil
	case <-v.lost:
		v.end()
		return nil, v.err
	}
}

// answers reports why the server does not answer on the carrier, nil if it does. A
// carrier can come up on which nothing passes, or not for long.
func (v *visit) answers(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-v.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err := echoTime(ctx, v.session, func(n int) bool { return n == 0 })
	select {
	case <-v.lost:
		return fmt.Errorf("comes up and is lost: %w", v.err)
	default:
	}
	if err != nil {
		return fmt.Errorf("comes up, and the server does not answer on it: %w", err)
	}
	return nil
}

// end ends the visit.
func (v *visit) end() {
	closeSession(v.session, v.link, "doctor")
	<-v.lost
	v.cancel()
}

const (
	transferTime = 2 * time.Second
	echoes       = 20
	echoing      = 5 * time.Second // for as many, or as many as that is enough for
	echoTimeout  = 10 * time.Second
)

// transfer measures the way with streams that end at the server.
func (d *Doctor) transfer(ctx context.Context, dialer carrier.Dialer) {
	v, err := d.visit(ctx, dialer)
	if err != nil {
		d.found(stepRoundTrip, VerdictWarn, "not measured: %v", err)
		return
	}
	defer v.end()
	began := time.Now()
	idle, err := echoTime(ctx, v.session, func(n int) bool { return n == 0 || n < echoes && time.Since(began) < echoing })
	if err != nil {
		d.found(stepRoundTrip, VerdictWarn, "not measured: %v", err)
		return
	}
	d.symptoms.idle = idle
	d.measured(stepRoundTrip, VerdictOK, idle.Seconds(), "s", "%s", rounded(idle))
	for _, way := range []struct {
		step string
		move func(context.Context, *visit) (rate float64, err error)
	}{{stepDownload, download}, {stepUpload, upload}} {
		over := make(chan struct{})
		var rate float64
		var moved error
		go func() {
			defer close(over)
			rate, moved = way.move(ctx, v)
		}()
		loaded, err := echoTime(ctx, v.session, func(n int) bool {
			select {
			case <-over:
				return n == 0
			default:
				return true
			}
		})
		<-over
		if err := errors.Join(moved, err); err != nil {
			d.found(way.step, VerdictWarn, "not measured: %v", err)
			continue
		}
		d.symptoms.loaded = max(d.symptoms.loaded, loaded)
		d.measured(way.step, VerdictOK, rate, "bytes/s", "%.1f MB/s, and an echo beside it takes %s", rate/1e6, rounded(loaded))
	}
}

// echoTime is the median time of echoes, one after the other for as long as more says
// so of how many there were.
func echoTime(ctx context.Context, s *mux.Session, more func(n int) bool) (time.Duration, error) {
	st, err := s.Open(ctx, mux.Header{Kind: mux.KindTest, Target: testEcho})
	if err != nil {
		return 0, err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { st.Close() })()
	var took []time.Duration
	p := make([]byte, 64)
	for more(len(took)) {
		began := time.Now()
		_ = st.SetDeadline(began.Add(echoTimeout))
		if _, err := st.Write(p); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(st, p); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// download and upload are the rate in bytes per second for transferTime.
func download(ctx context.Context, v *visit) (float64, error) {
	return v.move(ctx, testGenerate, (*mux.Stream).Read)
}

func upload(ctx context.Context, v *visit) (float64, error) {
	return v.move(ctx, testDiscard, (*mux.Stream).Write)
}

func (v *visit) move(ctx context.Context, target string, some func(*mux.Stream, []byte) (int, error)) (rate float64, err error) {
	st, err := v.session.Open(ctx, mux.Header{Kind: mux.KindTest, Target: target})
	if err != nil {
		return 0, err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { st.Close() })()
	began := time.Now()
	_ = st.SetDeadline(began.Add(transferTime + echoTimeout))
	buf := make([]byte, 256<<10)
	n := 0
	for time.Since(began) < transferTime {
		k, err := some(st, buf)
		n += k
		if err != nil {
			return 0, err
		}
	}
	flushing, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	if err := v.link.Flush(flushing.Done()); err != nil { // of what was written
		return 0, err
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// rounded is d with three digits.
func rounded(d time.Duration) time.Duration {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
}
