//go:build !linux

package tunnel

import "testing"

// fullBacklog is an address from a block that is reserved for documentation and
// answers nobody.
func fullBacklog(testing.TB) string { return "192.0.2.1:9" }
