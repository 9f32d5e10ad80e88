// Command culvert-client carries TCP connections to a culvert-server through
// anything that lets HTTP pass: forwards of the -L kind listen here and are dialled
// from the server, forwards of the -R kind the other way round.
package main
