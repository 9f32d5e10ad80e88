// Package thirdparty is what tests need to run the programs of others, such as nginx and squid: where
// one is, a configuration of the test's own, and a port. The process itself is package agent's.
//
// In CI (CI=true) a program that is not installed is a failure, elsewhere a skip.
package thirdparty
