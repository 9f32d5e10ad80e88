package tunnel

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/mux/carrier"
)

func TestDoctorIdleLimit(t *testing.T) {
	const s = time.Second
	closed := func(quiet, after time.Duration) fate { return fate{quiet, after, true} }
	silent := func(quiet time.Duration) fate { return fate{quiet, quiet, false} }
	lived := func(quiet time.Duration) fate { return fate{quiet: quiet} }
	for _, tt := range []struct {
		name            string
		fates           []fate
		age             time.Duration
		limit, survived time.Duration
		silent          bool
	}{
		{"none", nil, 0, 0, 0, false},
		{"no limit", []fate{lived(2 * s), lived(8 * s)}, 0, 0, 8 * s, false},
		{"closed", []fate{lived(2 * s), closed(8*s, 5*s), closed(12*s, 5001*time.Millisecond)}, 0, 5 * s, 2 * s, false},
		{"forgotten", []fate{lived(2 * s), lived(4 * s), silent(8 * s), silent(12 * s)}, 0, 8 * s, 4 * s, true},
		{"of age", []fate{lived(2 * s), lived(8 * s), closed(12*s, 10*s)}, 10 * s, 0, 8 * s, false},
		{"of age, a little early", []fate{lived(8 * s), closed(12*s, 9500*time.Millisecond)}, 10 * s, 0, 8 * s, false},
		{"both", []fate{lived(2 * s), closed(8*s, 5*s), closed(12*s, 5*s)}, 10 * s, 5 * s, 2 * s, false},
		{"lived beyond the limit", []fate{closed(8*s, 5*s), lived(12 * s)}, 0, 5 * s, 0, false},
	} {
		limit, silent, survived := idleLimit(tt.fates, tt.age)
		if limit != tt.limit || silent != tt.silent || survived != tt.survived {
			t.Errorf("%s: limit %v, silent %t, survived %v; want %v, %t, %v", tt.name, limit, silent, survived, tt.limit, tt.silent, tt.survived)
		}
	}
}

func TestDoctorAdvice(t *testing.T) {
	const s = time.Second
	refused := errors.New("refused")
	for _, tt := range []struct {
		name string
		symptoms
		want []string // part of each sentence
	}{
		{"well", symptoms{worked: true, idle: s / 100, loaded: s / 10}, nil},
		{"stripped", symptoms{worked: true, upgrade: refused, front: `"nginx"`}, []string{`"nginx" does not let WebSocket upgrades pass`}},
		{"no tunnel", symptoms{worked: true, upgrade: &carrier.ProxyError{Proxy: "proxy:3128", Status: 403}}, []string{"the proxy proxy:3128 makes no tunnel"}},
		{"stripped by nobody", symptoms{worked: true, upgrade: refused}, []string{"something on the way does not let"}},
		{"stripped, and WebSocket wanted", symptoms{upgrade: refused, requests: errNotTried}, []string{"without --carrier websocket"}},
		{"HTTP wanted", symptoms{worked: true, upgrade: errNotTried}, nil},
		{"nothing works", symptoms{upgrade: refused, requests: refused}, nil},
		{"idle limit above the heartbeat", symptoms{worked: true, quiet: 60 * s, heartbeat: 20 * s}, []string{"closes connections that are idle for 1m0s: nothing to do"}},
		{"idle limit below it", symptoms{worked: true, quiet: 6 * s, heartbeat: 20 * s}, []string{"give --heartbeat 4s"}},
		{"silent", symptoms{worked: true, quiet: 60 * s, silent: true, heartbeat: 20 * s}, []string{"silently forgets"}},
		{"lifetime", symptoms{worked: true, age: 30 * s}, []string{"cuts every connection after 30s: nothing to do"}},
		{"bufferbloat", symptoms{worked: true, idle: s / 100, loaded: s}, []string{"beside a transfer an echo takes 1s instead of 10ms"}},
		{"far away", symptoms{worked: true, idle: s / 2, loaded: s}, nil},
	} {
		advice := tt.advice()
		if !slices.EqualFunc(advice, tt.want, strings.Contains) {
			t.Errorf("%s: %q, want %q", tt.name, advice, tt.want)
		}
	}
}

// A doctor that is sent away ends.
func TestDoctorIsStopped(t *testing.T) {
	_, server := startServer(t, nil)
	c, _ := newTestClient(t, server, nil)
	ctx, cancel := context.WithCancel(t.Context())
	d := Doctor{Config: c.cfg, Long: time.Hour, Found: func(f Finding) {
		t.Logf("%s %s %s", f.Step, f.Verdict, f.Text)
		if f.Step == stepUpload {
			cancel()
		}
	}}
	diagnosis, err := d.Examine(ctx)
	if err != nil || !diagnosis.Works {
		t.Errorf("%+v, %v", diagnosis, err)
	}
}

// It says for whom a link is sealed.
func TestDoctorOfSeal(t *testing.T) {
	key := newKey(t)
	_, server := startServer(t, func(c *ServerConfig) { c.Key = key })
	c, _ := newTestClient(t, server, sealing(key, nil))
	ctx, cancel := context.WithCancel(t.Context())
	texts := map[string]string{}
	d := Doctor{Config: c.cfg, Found: func(f Finding) {
		texts[f.Step] = f.Text
		if f.Step == stepRoundTrip {
			cancel()
		}
	}}
	if diagnosis, err := d.Examine(ctx); err != nil || !diagnosis.Works {
		t.Errorf("%+v, %v", diagnosis, err)
	}
	for _, step := range []string{stepUpgrade, stepRequests} {
		if !strings.Contains(texts[step], ", sealed for the server with the key SHA256:") {
			t.Errorf("%s: %s", step, texts[step])
		}
	}
}

// One that waits for connections to be cut ends as well.
func TestDoctorIsStoppedWhileItWaits(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	c, _ := newTestClient(t, server, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	d := Doctor{Config: c.cfg, Long: time.Hour, client: c, Found: func(Finding) {}}
	began := time.Now()
	d.limits(ctx, *c.dialers[0])
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it went on for %v", took)
	}
}

// What was not waited for is not said to be well.
func TestDoctorHasNoTime(t *testing.T) {
	t.Parallel()
	_, server := startServer(t, nil)
	c, _ := newTestClient(t, server, nil)
	verdicts := map[string]Verdict{}
	d := Doctor{Config: c.cfg, client: c, Found: func(f Finding) { verdicts[f.Step] = f.Verdict }}
	d.Long = time.Second // less than anything is left alone for
	d.limits(t.Context(), *c.dialers[0])
	if verdicts[stepIdle] != VerdictSkip || verdicts[stepAge] != VerdictOK {
		t.Errorf("in a second: %v", verdicts)
	}
	nowhere := listenLoopback(t)
	nowhere.Close()
	dialer := *c.dialers[0]
	dialer.Address = nowhere.Addr().String()
	d.limits(t.Context(), dialer)
	if verdicts[stepIdle] != VerdictSkip || verdicts[stepAge] != VerdictSkip {
		t.Errorf("where nobody answers: %v", verdicts)
	}
}

func TestDoctorRounds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 999: "999ns", 123456: "123µs", 1500 * time.Millisecond: "1.5s", 5001 * time.Millisecond: "5s", 65 * time.Second: "1m5s",
	} {
		if got := rounded(d).String(); got != want {
			t.Errorf("%d is %s, want %s", d, got, want)
		}
	}
}
