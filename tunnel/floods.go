package tunnel

import (
	"log/slog"
	"sync"
	"time"

	"culvert/tunnel/audit"
)

// toldPerSecond is how many events of one kind and identity are written in a second.
const toldPerSecond = 20

// floods bounds what an identity can have written to the log and the audit log as often as
// it likes: of each kind of event and each identity 20 in a second. At the end of the second
// one line says how many were left out. No identity hides what another does.
type floods struct {
	log   events
	audit *audit.Log // nil: none

	mu sync.Mutex
	of map[flood]*told
}

// flood names the events that are counted together.
type flood struct {
	what     string // the message in the log, "" if only the audit log has it
	event    string // of the audit log, "" if only the log has it
	identity string
}

// told counts the events of a flood that were written. It is forgotten after a second.
type told struct {
	since   time.Time // when the present second began
	written int       // in it
	leftOut int
	timer   *time.Timer
}

func newFloods(log events, audit *audit.Log) *floods {
	return &floods{log: log, audit: audit, of: make(map[flood]*told)}
}

// admit reports whether one more event is to be written.
func (fs *floods) admit(f flood) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	now := time.Now()
	t := fs.of[f]
	if t == nil {
		t = &told{since: now}
		t.timer = time.AfterFunc(time.Second, func() { fs.settle(f, t) })
		fs.of[f] = t
	}
	if now.Sub(t.since) >= time.Second {
		t.since, t.written = now, 0
	}
	if t.written == toldPerSecond {
		t.leftOut++
		return false
	}
	t.written++
	return true
}

// settle writes how many events were left out, at the end of a second.
func (fs *floods) settle(f flood, t *told) {
	fs.mu.Lock()
	if fs.of[f] != t { // flush was faster
		fs.mu.Unlock()
		return
	}
	n := t.leftOut
	t.leftOut = 0
	if left := time.Until(t.since.Add(time.Second)); left > 0 { // another second has begun
		t.timer.Reset(left)
	} else {
		delete(fs.of, f)
	}
	fs.mu.Unlock()
	fs.tell(f, n)
}

// flush writes what was left out until now.
func (fs *floods) flush() {
	fs.mu.Lock()
	all := fs.of
	fs.of = make(map[flood]*told)
	fs.mu.Unlock()
	for f, t := range all {
		t.timer.Stop()
		fs.tell(f, t.leftOut)
	}
}

func (fs *floods) tell(f flood, leftOut int) {
	if leftOut == 0 {
		return
	}
	if f.what != "" {
		fs.log.Warn(f.what, keyClient, f.identity, keyLeftOut, leftOut)
	}
	if f.event != "" {
		fs.audit.Event(f.event, slog.String(keyIdentity, f.identity), slog.Int(keyLeftOut, leftOut))
	}
}

// admit is that of floods, for an event of this identity. A nil usage, which is that of
// whoever has no identity, admits everything.
func (u *usage) admit(what, event string) bool {
	return u == nil || u.all.floods.admit(flood{what, event, u.identity})
}

// enterTold is enter with a refusal told to the audit log's entry of the stream.
func (u *usage) enterTold(e *entry) error {
	err := u.enter()
	if err == nil {
		return nil
	}
	u.turn()
	if u.admit("", auditStreamDenied) {
		e.refuse(err)
	}
	return err
}

// targetRefused tells the audit log why a stream to a target is not served, and reports
// whether the log is to be told too.
func (u *usage) targetRefused(e *entry, err error) (told bool) {
	u.turn()
	event, _ := refusal(err, auditStreamDenied, auditStreamFailed)
	if told = u.admit("target refused", event); told {
		e.refuse(err)
	}
	return told
}

// listenRefused writes why the peer may not listen at bind.
func (p *peer) listenRefused(bind string, err error) {
	event, attrs := refusal(err, auditListenDenied, auditListenFailed)
	what := "listen refused"
	if isLimit(err) { // of which the log is told otherwise
		what = ""
	}
	if !p.usage.admit(what, event) {
		return
	}
	if what != "" {
		p.log.Warn(what, keyAddress, bind, keyReason, err)
	}
	p.account.event(event, append(attrs, auditText(keyTarget, bind))...)
}
