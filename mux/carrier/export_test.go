package carrier

import (
	"context"
	"net/netip"
)

// SetLookup has d find the addresses of names with lookup.
func SetLookup(d *Dialer, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)) {
	d.lookup = lookup
}
