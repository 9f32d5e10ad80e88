package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"culvert/auth/textfile"
)

// maxFile bounds a configuration file in bytes.
const maxFile = 1 << 20

// Sources is where the values of options come from, besides their defaults and the
// file that the option "config" names.
type Sources struct {
	// Flags has the values of the flags that were given, by option name, in
	// their order. Names that are no options are left to the caller.
	Flags map[string][]string
	// Typed has for each of these values how the flag was written, "-L" or "--local",
	// for messages. nil: "--" and the name.
	Typed map[string][]string
	// LookupEnv is os.LookupEnv or a stand-in; nil means an empty environment.
	// White space around a value is ignored. A variable with nothing else in it counts
	// as not set.
	LookupEnv func(name string) (string, bool)
}

// env returns the value of an environment variable without white space around it: a
// value that was read from a file often ends in a newline. It is "" for one that is not
// set.
func (s Sources) env(name string) string {
	if s.LookupEnv == nil {
		return ""
	}
	text, _ := s.LookupEnv(name)
	return strings.TrimSpace(text)
}

// rank orders the sources: a higher one replaces what a lower one said.
type rank int

const (
	fromFile rank = iota
	fromEnv
	fromFlag
)

// origin is where a value stands.
type origin struct {
	rank rank
	file string
	line int
	key  string
	dir  string // at which relative paths begin, "" for the working directory
}

// absolute returns the path that stands at o as an absolute one.
func (o origin) absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	abs, err := filepath.Abs(filepath.Join(o.dir, path))
	if err != nil { // there is no working directory
		return path
	}
	return abs
}

func (o origin) String() string {
	if o.file == "" {
		return o.key
	}
	return fmt.Sprintf("%s:%d", o.file, o.line)
}

// value is a value's text and where it stands.
type value struct {
	text   string
	origin origin
}

// loader gathers everything about one configuration while it is read.
type loader struct {
	options  []Option
	sections []section
	problems Problems
	warnings []string
	// origins has those of the values that count, by option name, in the order
	// of the values. Defaults have none.
	origins map[string][]origin
	// rejected has the options of which some value was wrong.
	rejected map[string]bool
	// unreadable says that there is a file and nothing could be read from it.
	unreadable bool
}

// load reads all sources into the targets of options, the weakest first, so that
// the strongest stays. The weaker are checked all the same. Sections are in the file
// only.
func load(options []Option, src Sources, sections ...section) *loader {
	l := &loader{options: options, sections: sections, origins: make(map[string][]origin), rejected: make(map[string]bool)}
	for _, o := range options {
		if o.Default == "" {
			continue
		}
		if err := o.assign(o.Default); err != nil {
			panic(fmt.Sprintf("config: default of %s: %v", o.Name, err)) // a mistake in a table
		}
	}
	env := envValues(options, src)
	flags := flagValues(options, src)
	var path string
	for _, values := range [][]value{env[fileOptionName], flags[fileOptionName]} {
		for _, v := range values {
			path = v.origin.absolute(v.text)
		}
	}
	for _, source := range []map[string][]value{l.readFile(path), env, flags} {
		for _, o := range options {
			if values := source[o.Name]; len(values) > 0 {
				l.replace(o, values)
			}
		}
	}
	return l
}

func envValues(options []Option, src Sources) map[string][]value {
	all := make(map[string][]value)
	for _, o := range options {
		if text := src.env(o.Env()); text != "" {
			for _, t := range o.splitEnv(text) {
				all[o.Name] = append(all[o.Name], value{t, origin{rank: fromEnv, key: o.Env()}})
			}
		}
	}
	return all
}

func flagValues(options []Option, src Sources) map[string][]value {
	all := make(map[string][]value)
	for _, o := range options {
		for i, t := range src.Flags[o.Name] {
			key := "--" + o.Name
			if typed := src.Typed[o.Name]; i < len(typed) {
				key = typed[i]
			}
			all[o.Name] = append(all[o.Name], value{t, origin{rank: fromFlag, key: key}})
		}
	}
	return all
}

// readFile returns the values of the file at path, none if path is "".
func (l *loader) readFile(path string) map[string][]value {
	if path == "" {
		return nil
	}
	data, err := textfile.Read(path, maxFile)
	if err != nil {
		l.problems = append(l.problems, Problem{File: path, What: cause(err), Hint: "check --config"})
		l.unreadable = true
		return nil
	}
	values, problems := decode(path, data, l.options, l.sections...)
	l.problems = append(l.problems, problems...)
	l.unreadable = values == nil
	for _, p := range problems {
		name, _, _ := strings.Cut(p.Key, ".") // of the option or section
		l.rejected[name] = true
	}
	return values
}

// cause is what an error of package os says besides the path.
func cause(err error) string {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return "cannot be read: " + err.Error()
}

// replace gives o the values of one source in place of those it had.
func (l *loader) replace(o Option, values []value) {
	o.reset()
	delete(l.origins, o.Name)
	for _, v := range values {
		if err := o.assign(o.textOf(v)); err != nil {
			l.rejected[o.Name] = true
			l.problems = append(l.problems, v.origin.problem(explain(err)))
			continue
		}
		l.origins[o.Name] = append(l.origins[o.Name], v.origin)
	}
	if len(l.origins[o.Name]) == 0 && o.Default != "" {
		// Keep the checks that compare options from reporting what follows
		// from a problem that is already on the list.
		_ = o.assign(o.Default)
	}
}

func (o origin) problem(what, hint string) Problem {
	return Problem{File: o.file, Line: o.line, Key: o.key, What: what, Hint: hint}
}

// given reports whether the option has a value that is not its default.
func (l *loader) given(name string) bool { return len(l.origins[name]) > 0 }

// failed reports whether a value for one of the options was wrong or may have been
// lost with the file, so that its absence is already explained.
func (l *loader) failed(names ...string) bool {
	return l.unreadable || slices.ContainsFunc(names, func(name string) bool { return l.rejected[name] })
}

// origin returns where the i-th value of an option stands, or that of a default.
func (l *loader) origin(name string, i int) origin {
	if i < len(l.origins[name]) {
		return l.origins[name][i]
	}
	return origin{key: "--" + name}
}

func (l *loader) problem(name string, i int, hint, format string, args ...any) {
	l.problems = append(l.problems, l.origin(name, i).problem(fmt.Sprintf(format, args...), hint))
}

func (l *loader) warn(text string) { l.warnings = append(l.warnings, text) }

// missing reports an option that has no value and needs one.
func (l *loader) missing(name string) {
	if l.failed(name) {
		return
	}
	for _, o := range l.options {
		if o.Name == name {
			l.problem(name, 0, fmt.Sprintf("give --%s %s, %s or the key %s in the file of --%s", name, o.placeholder(), o.Env(), name, fileOptionName), "is not set")
		}
	}
}

// exclusive lets one of the options be set: the one of the strongest source.
func (l *loader) exclusive(names ...string) {
	for i, a := range names {
		for _, b := range names[i+1:] {
			l.eitherOf(a, b)
		}
	}
}

func (l *loader) eitherOf(a, b string) {
	if !l.given(a) || !l.given(b) {
		return
	}
	weaker := a
	switch ra, rb := l.origins[a][0].rank, l.origins[b][0].rank; {
	case ra == rb:
		l.problem(b, 0, "give one of the two", "is given together with --%s (%s)", a, l.origin(a, 0))
		return
	case ra > rb:
		weaker = b
	}
	for _, o := range l.options {
		if o.Name == weaker {
			o.reset()
			delete(l.origins, weaker)
		}
	}
}

// checkKeyPair reports a certificate without its key, and the other way round.
func (l *loader) checkKeyPair(cert, key string) {
	switch {
	case cert != "" && key == "" && !l.failed("tls-key"):
		l.problem("tls-cert", 0, "give --tls-key too", "needs its private key")
	case key != "" && cert == "" && !l.failed("tls-cert"):
		l.problem("tls-key", 0, "give --tls-cert too", "needs its certificate")
	}
}

// checkToken looks at where the token stands.
func (l *loader) checkToken(s *Settings) {
	if l.given("token") {
		l.checkSecret(s, "token", "the token", "--token-file or CULVERT_TOKEN")
	}
}

// checkSecret looks at where the value of an option stands, which is or holds a
// secret: others may see it there.
func (l *loader) checkSecret(s *Settings, option, secret, better string) {
	switch l.origin(option, 0).rank {
	case fromFile:
		s.SecretFile = s.File
	case fromFlag:
		l.warn(secret + " is on the command line, where everybody on this machine can see it (ps); use " + better)
	case fromEnv:
	}
}

// Fixed are the names of the options in which two configurations of an agent differ
// and that an agent which runs cannot change.
func Fixed[Agent interface{ options() []Option }](a, b Agent) (names []string) {
	value := func(o Option) any { return reflect.ValueOf(o.target).Elem().Interface() }
	others := b.options()
	for i, o := range a.options() {
		if !o.Live && !reflect.DeepEqual(value(o), value(others[i])) {
			names = append(names, o.Name)
		}
	}
	return names
}
