// Package idle measures what an idle stream costs each agent in resident memory.
//
// It is a package of its own so that nothing else runs in the process that holds the 10,000
// connections, and because the agents are built without the race detector whatever the test is.
package idle
