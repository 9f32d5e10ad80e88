package tunnel

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"culvert/auth"
)

const (
	// attemptWindow is how long the requests of a client with one credential count as
	// one attempt to log in: a client makes several of them, over a WebSocket and over
	// an HTTP pipe.
	attemptWindow = 10 * time.Second
	// attemptsPerAddress are reported in a window; of more only the number is.
	attemptsPerAddress = 5
	// attemptsPerSecond of all addresses together are reported.
	attemptsPerSecond = 10
	// maxAttempting addresses are told apart in a window; all further ones count as one.
	maxAttempting = 1024
)

// attempts bounds what refused logins write to the log and the audit log: once for each
// attempt, and not much for each address, so that one does not hide another.
type attempts struct {
	mu     sync.Mutex
	byAddr map[netip.Prefix]*attempting
	second time.Time // when the present second began
	count  int       // reports in it
}

// attempting is an address from which logins were refused.
type attempting struct {
	since   time.Time           // beginning of the window
	seen    map[credential]bool // in the window
	leftOut int                 // attempts that were not reported
}

// credential stands for what a client has shown.
type credential [sha256.Size]byte

// note is told of each request that is refused. It says whether to report it and, if
// so, how many attempts of the address were left out before.
func (a *attempts) note(addr netip.Addr, c credential, now time.Time) (report bool, leftOut int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from := a.address(addr, now)
	if now.Sub(from.since) >= attemptWindow {
		from.since, from.seen = now, make(map[credential]bool)
	}
	switch {
	case from.seen[c]:
		return false, 0
	case len(from.seen) >= attemptsPerAddress:
		from.leftOut++
		return false, 0
	}
	from.seen[c] = true
	if now.Sub(a.second) >= time.Second {
		a.second, a.count = now, 0
	}
	if a.count >= attemptsPerSecond {
		from.leftOut++
		return false, 0
	}
	a.count++
	leftOut, from.leftOut = from.leftOut, 0
	return true, leftOut
}

// address is the entry of addr. Called with mu held.
func (a *attempts) address(addr netip.Addr, now time.Time) *attempting {
	key := auth.SourceOf(addr)
	if from := a.byAddr[key]; from != nil {
		return from
	}
	if len(a.byAddr) >= maxAttempting {
		for key, from := range a.byAddr {
			if now.Sub(from.since) >= attemptWindow {
				delete(a.byAddr, key)
			}
		}
		if len(a.byAddr) >= maxAttempting {
			key = netip.Prefix{}
		}
	}
	from := a.byAddr[key]
	if from == nil {
		from = new(attempting)
		if a.byAddr == nil {
			a.byAddr = make(map[netip.Prefix]*attempting)
		}
		a.byAddr[key] = from
	}
	return from
}

// credentialOf returns what stands for a credential that was shown.
func credentialOf(p auth.Presented) (c credential) {
	h := sha256.New()
	part := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	for _, text := range []string{p.Kind(), p.Bearer, p.User, p.Password} {
		part([]byte(text))
	}
	if p.Key != nil {
		part(p.Key[:])
	}
	for _, cert := range p.Certificates {
		part(cert.Raw)
	}
	h.Sum(c[:0])
	return c
}
