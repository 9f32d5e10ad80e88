// Package linktest has carriers in memory, and the examples of PROTOCOL.md, for
// tests of links and of what is above them.
package linktest
