package carrier

import (
	"context"
	"net/netip"
)

// PipeMemory is how much of its PipeMemory a server uses.
func PipeMemory(s *Server) int64 { return s.memory.used.Load() }

// OpenAnswer opens the content of a sealed answer.
func OpenAnswer(b []byte) error {
	_, _, err := openAnswer(b)
	return err
}

// SetLookup has d find the addresses of names with lookup.
func SetLookup(d *Dialer, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)) {
	d.lookup = lookup
}
