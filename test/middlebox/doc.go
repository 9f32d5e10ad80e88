// Package middlebox puts the real programs that stand between clients and servers between ours: forward
// proxies, one that intercepts TLS, a load balancer, a firewall in a network namespace. Each is started with a configuration of the
// test's own, on a port of its own. CULVERT_LONG=1 lets what takes two minutes take two minutes.
//
// In CI (CI=true) one that is not installed is a failure, elsewhere a skip.
package middlebox
