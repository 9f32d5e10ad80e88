package carrier

import (
	"crypto/tls"
	"sync"
)

// tickets are those of TLS sessions that one Dial uses and gets. Who resumes a session
// does not show a client certificate again, and it may be that which was refused: a
// Dial that fails leaves none.
type tickets struct {
	mu     sync.Mutex
	cache  tls.ClientSessionCache
	failed bool
}

func (t *tickets) Get(name string) (*tls.ClientSessionState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cache.Get(name)
}

// Put keeps a ticket, unless the Dial has failed: some of its connections may live a
// little longer.
func (t *tickets) Put(name string, session *tls.ClientSessionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.failed {
		t.cache.Put(name, session)
	}
}

func (t *tickets) forget(name string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = true
	t.cache.Put(name, nil)
}
