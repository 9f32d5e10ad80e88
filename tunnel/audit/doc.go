// Package audit writes a server's record of who came, what was let pass and what was
// not: [Log] makes a line of JSON of each event, and goes on when the lines cannot be
// written; [File] is a file for them that is replaced when it has grown. It knows nothing
// of what the events mean: see docs/audit.md for them and their keys. Events that somebody
// can cause as often as he likes are bounded by the caller.
package audit
