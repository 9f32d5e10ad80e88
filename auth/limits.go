package auth

import (
	"errors"
	"fmt"
	"strings"
)

// Limits are how much an identity may use of the server, on top of what the server
// allows anybody. Zero is no limit. With signed tokens each subject has the limits
// for itself, and those of Identity.Shared together with all others of the identity.
type Limits struct {
	Sessions       int
	Streams        int   // of all its sessions together
	OpensPerSecond int   // streams opened, after as many at once
	Upload         int64 // bytes per second from the client
	Download       int64 // bytes per second to the client
	BytesPerDay    int64 // both ways together; a day is one of UTC
	Memory         int64 // bytes received from the client that wait for whoever reads them
}

// check reports the limits that are negative.
func (l Limits) check() error {
	var errs []error
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{"sessions", int64(l.Sessions)},
		{"streams", int64(l.Streams)},
		{"opens-per-second", int64(l.OpensPerSecond)},
		{"upload", l.Upload},
		{"download", l.Download},
		{"bytes-per-day", l.BytesPerDay},
		{"memory", l.Memory},
	} {
		if limit.value < 0 {
			errs = append(errs, fmt.Errorf("limit %s is negative", limit.name))
		}
	}
	return errors.Join(errs...)
}

// Limits are those of an identity, by the name in its Login. Who is not known has
// none; nothing is granted to it either.
func (g *Guard) Limits(identity string) Limits {
	if id := g.current().lookup(identity); id != nil {
		return id.Limits
	}
	return Limits{}
}

// SharedLimits are those of all subjects of an identity together, by the name in the Login
// of one of them, and the name of the identity. Memory is not among them.
func (g *Guard) SharedLimits(identity string) (name string, l Limits) {
	name, _, _ = strings.Cut(identity, "/")
	if id := g.current().lookup(identity); id != nil {
		l = id.Shared
	}
	return name, l
}
