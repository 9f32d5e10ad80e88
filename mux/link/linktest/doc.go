// Package linktest has carriers in memory, for tests of links and of what is
// above them.
package linktest
