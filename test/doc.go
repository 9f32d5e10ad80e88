// Package test holds what needs both programs, or somebody else's: the programs are built once and run
// as processes, with a relay that misbehaves between them (netfault), behind a real reverse proxy, and
// under OpenSSH and PostgreSQL.
//
// The environment decides how much is done:
//
//	CULVERT_SLOW=1  the full sizes (implied by CI=true, unless CULVERT_SLOW=0)
//	CI=true         a third-party program that is not installed is a failure, not a skip
//
// The programs are built with the race detector when the test is, except for the tests that measure.
// Nothing imports this package.
package test
