// Package program is what the two binaries have in common: flags made from a
// table of config, help and version, the log, signals, and what an error is called
// for people and as an exit code. Only package main calls it, and nothing but it
// and the binaries knows urfave/cli.
package program
