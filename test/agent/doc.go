// Package agent builds culvert's two programs and runs them, and the programs of others, as processes
// of a test: it reads what they log, waits for events, and sees to it that none outlives its test.
//
// A process is ended by its own id only.
package agent
