//go:build race

package agent

// Race tells whether this test was built with the race detector.
const Race = true
