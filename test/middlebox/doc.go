// Package middlebox puts the real programs that stand between clients and servers between ours: forward
// proxies so far. Each is started with a configuration of the test's own, on a port of its own.
//
// In CI (CI=true) one that is not installed is a failure, elsewhere a skip.
package middlebox
