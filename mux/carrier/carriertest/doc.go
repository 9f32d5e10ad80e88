// Package carriertest makes pairs of real carriers for tests, in memory or over
// loopback, and paths between them that fail on request. With [Network] nothing
// touches the system, so it works in testing/synctest bubbles.
package carriertest
