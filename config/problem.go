package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	File string // the file it stands in, "" if it does not stand in a file
	Line int    // its line in File, from 1; 0 if none can be said
	Key  string // the key of the file, or --flag, or the environment variable
	What string // what is wrong
	Hint string // what to do
}

// String is one line: "file:line: key: what is wrong; what to do".
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Problems is everything that is wrong with a configuration, never empty when
// returned as an error: first what stands in files, in the order of their names and
// lines.
type Problems []Problem

// Error is one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Err sorts the problems and returns them, nil if there are none.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		if (a.File == "") != (b.File == "") {
			return strings.Compare(b.File, a.File)
		}
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line)
	})
	return p
}

// fault is what a parser has to say about a text; who called the parser knows
// where the text stands.
type fault struct {
	what, hint string
}

func (f *fault) Error() string { return f.what + "; " + f.hint }

func wrong(hint, format string, args ...any) error {
	return &fault{what: fmt.Sprintf(format, args...), hint: hint}
}

// explain says what is wrong by err, which a parser of a text gave, and what to do.
func explain(err error) (what, hint string) {
	if f, ok := errors.AsType[*fault](err); ok {
		return f.what, f.hint
	}
	return err.Error(), ""
}

// Nearest returns the name that was probably meant by word, "" if none is near.
func Nearest(word string, names []string) string {
	word = strings.ReplaceAll(strings.ToLower(word), "_", "-")
	best, least := "", len(word)/3+2 // a third of it may be wrong, or two letters swapped
	for _, name := range names {
		if d := distance(word, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance counts the insertions, deletions and replacements of bytes (Levenshtein)
// between a and b, which must be short.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
