package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert/auth/hostname"
)

// Option is one row of an agent's table: a setting, with everything that there is
// to say about it.
type Option struct {
	Name        string // of the flag, --name, and of the key in the file
	Short       string // one-letter flag, "" for none
	Switch      string // one-letter flag without a value that stands for SwitchTo, "" for none
	SwitchTo    string
	Placeholder string // for the value in help texts, "" for the kind's own
	Default     string // as a user would write it, "" for none
	Help        string // a sentence without a full stop
	FlagOnly    bool   // not a key of the file
	Live        bool   // changes while the agent runs

	// Limits of a number: an int, a Size in bytes, a time.Duration. Both 0 means
	// no limits.
	min, max int64
	choices  []string           // the only texts allowed, nil for any
	check    func(string) error // of one value's text, nil for none
	// file reports whether a value's text names a file or a directory; nil: none does.
	file func(text string) bool

	target any // points to the field of the agent's struct that takes the value
}

// Kind says how an option's values are written.
type Kind string

// The kinds of options.
const (
	KindBool     Kind = "bool"
	KindText     Kind = "text"
	KindNumber   Kind = "number"
	KindDuration Kind = "duration"
	KindSize     Kind = "size"
	KindForwards Kind = "forwards" // repeatable
	KindHeaders  Kind = "headers"  // repeatable
	KindTexts    Kind = "texts"    // repeatable; one alone may stand in the file without a list
)

// Kind is that of the field which takes the option's value.
func (o Option) Kind() Kind {
	switch o.target.(type) {
	case *bool:
		return KindBool
	case *int:
		return KindNumber
	case *time.Duration:
		return KindDuration
	case *Size:
		return KindSize
	case *[]Forward:
		return KindForwards
	case *map[string][]string:
		return KindHeaders
	case *[]string, *[]*url.URL, *[]Text:
		return KindTexts
	default:
		return KindText
	}
}

// Repeatable reports whether an option can be given several times, each adding to
// a list. Of other options the last one given counts.
func (o Option) Repeatable() bool {
	return slices.Contains([]Kind{KindForwards, KindHeaders, KindTexts}, o.Kind())
}

// Env is the name of the option's environment variable.
func (o Option) Env() string {
	return "CULVERT_" + strings.ReplaceAll(strings.ToUpper(o.Name), "-", "_")
}

// Flag is how the flag is written, with its short form and a placeholder for the
// value.
func (o Option) Flag() string {
	s := "--" + o.Name
	if o.Short != "" {
		s = "-" + o.Short + ", " + s
	}
	if p := o.placeholder(); p != "" {
		s += " " + p
	}
	return s
}

func (o Option) placeholder() string {
	kind := map[Kind]string{
		KindBool: "", KindText: "TEXT", KindNumber: "N", KindDuration: "DURATION", KindSize: "SIZE",
		KindForwards: "[BIND:]PORT:HOST:PORT", KindHeaders: "'NAME: VALUE'", KindTexts: "TEXT",
	}[o.Kind()]
	if len(o.choices) > 0 {
		kind = strings.Join(o.choices, "|")
	}
	return cmp.Or(o.Placeholder, kind)
}

// example is a value for messages.
func (o Option) example() string {
	return map[Kind]string{
		KindBool:     "true or false",
		KindText:     "a text",
		KindNumber:   "a whole number",
		KindDuration: "a duration like 20s or 1m30s",
		KindSize:     "a size like 512KiB or 4MiB",
		KindForwards: "a list of [BIND:]PORT:HOST:PORT",
		KindHeaders:  "a list of NAME: VALUE",
		KindTexts:    "a text or a list of texts",
	}[o.Kind()]
}

// splitEnv cuts the value of an environment variable into the values of the
// option: forwards at white space and commas, headers at the ends of lines, other
// lists at white space.
func (o Option) splitEnv(value string) []string {
	switch o.Kind() {
	case KindForwards:
		return strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" ,\t\r\n", r) })
	case KindHeaders:
		return slices.DeleteFunc(strings.FieldsFunc(value, func(r rune) bool { return r == '\n' || r == '\r' }),
			func(line string) bool { return strings.TrimSpace(line) == "" })
	case KindTexts:
		return strings.Fields(value)
	default:
		return []string{value}
	}
}

// always is for options whose values all name files.
func always(string) bool { return true }

// unless is for options whose values name files but for one word.
func unless(word string) func(text string) bool {
	return func(text string) bool { return text != word }
}

// textOf returns the text of v for o, with the name of a file as an absolute path.
func (o Option) textOf(v value) string {
	if o.file == nil || v.text == "" || !o.file(v.text) {
		return v.text
	}
	return v.origin.absolute(v.text)
}

// reset empties the field.
func (o Option) reset() {
	switch p := o.target.(type) {
	case *bool:
		*p = false
	case *int:
		*p = 0
	case *time.Duration:
		*p = 0
	case *Size:
		*p = 0
	case *[]Forward:
		*p = nil
	case *map[string][]string:
		*p = nil
	case *string:
		*p = ""
	case *Secret:
		*p = Secret{}
	case *[]string:
		*p = nil
	case *[]*url.URL:
		*p = nil
	case *slog.Level:
		*p = 0
	}
}

// assign reads text into the field, or adds it to the field's list. A text that is
// wrong gives a *fault and leaves the field alone.
func (o Option) assign(text string) error {
	if text == "" {
		return wrong("give "+o.example()+" or leave it out", "is empty")
	}
	if len(o.choices) > 0 && !slices.Contains(o.choices, text) {
		return wrong("give "+strings.Join(o.choices, " or "), "%q is not a choice", text)
	}
	if o.check != nil {
		if err := o.check(text); err != nil {
			return err
		}
	}
	switch p := o.target.(type) {
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return wrong("give true or false", "%q is not a yes or no", text)
		}
		*p = b
	case *int:
		n, err := parseDecimal(text)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return wrong("give "+o.example(), "%q is not a number", text)
		}
		return store(p, n, o, func(n int64) string { return strconv.FormatInt(n, 10) })
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return wrong("give "+o.example(), "%q is not a duration", text)
		}
		return store(p, int64(d), o, func(n int64) string { return shortDuration(time.Duration(n)) })
	case *Size:
		size, err := ParseSize(text)
		if err != nil {
			return err
		}
		return store(p, int64(size), o, func(n int64) string { return Size(n).String() })
	case *[]Forward:
		f, err := ParseForward(text)
		if err != nil {
			return err
		}
		*p = append(*p, f)
	case *map[string][]string:
		name, value, err := parseHeader(text)
		if err != nil {
			return err
		}
		if *p == nil {
			*p = make(map[string][]string)
		}
		(*p)[name] = append((*p)[name], value)
	case *string:
		if err := checkPrintable(text); err != nil {
			return err
		}
		*p = text
	case *Secret:
		*p = NewSecret(text)
	case *[]string:
		*p = append(*p, text)
	case *Text:
		if err := checkPrintable(text); err != nil {
			return err
		}
		p.Value = text
	case *[]Text:
		if err := checkPrintable(text); err != nil {
			return err
		}
		*p = append(*p, Text{Value: text})
	case *time.Time:
		t, err := ParseTime(text)
		if err != nil {
			return err
		}
		*p = t
	case *[]*url.URL:
		u, err := parseServer(text)
		if err != nil {
			return err
		}
		*p = append(*p, u)
	case *slog.Level:
		return p.UnmarshalText([]byte(text))
	default:
		panic(fmt.Sprintf("config: option %s has a field of type %T", o.Name, o.target))
	}
	return nil
}

// store puts n into a field of a numeric type when it is within the limits of o.
func store[T ~int | ~int64](field *T, n int64, o Option, show func(int64) string) error {
	if (o.min != 0 || o.max != 0) && (n < o.min || n > o.max) {
		return wrong(fmt.Sprintf("give %s to %s", show(o.min), show(o.max)), "%s is out of range", show(n))
	}
	*field = T(n)
	return nil
}

// shortDuration is d.String without zero minutes and seconds at its end.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// checkPrintable refuses what would end a line or move the cursor.
func checkPrintable(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return wrong("remove it", "has a control character in it")
	}
	return nil
}

// ParseTime reads a time as in RFC 3339, or a day, at whose beginning (UTC) it is.
func ParseTime(text string) (time.Time, error) {
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, wrong("write it like 2027-01-31 or 2027-01-31T12:00:00Z", "%q is not a time", text)
}

// parseHeader reads "Name: value" of an HTTP request header that the carrier does
// not set itself.
func parseHeader(text string) (name, value string, err error) {
	const hint = "write NAME: VALUE"
	name, value, ok := strings.Cut(text, ":")
	name, value = textproto.TrimString(name), textproto.TrimString(value)
	if !ok || name == "" || strings.ContainsFunc(name, notToken) {
		return "", "", wrong(hint, "does not begin with a header's name and a colon")
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", "", wrong("remove it", "%s has a control character in its value", name)
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case name == "Authorization":
		return "", "", wrong("give culvert's credential with --token-file, and one for a proxy in front with --front-user", "Authorization is set by culvert")
	case slices.Contains([]string{"Connection", "Content-Length", "Origin", "Transfer-Encoding", "Upgrade"}, name),
		strings.HasPrefix(name, "Sec-Websocket-"), strings.HasPrefix(name, "Culvert-"):
		return "", "", wrong("leave it out", "%s cannot be given", name)
	}
	return name, value, nil
}

// notToken reports characters that a header's name cannot have (RFC 9110, 5.6.2).
func notToken(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// parseServer reads the URL of a server. It repeats the URL in an error unless there may
// be a secret in it: before an @, or in the query.
func parseServer(text string) (*url.URL, error) {
	const hint = "write it like wss://example.com or ws://127.0.0.1:8080/path"
	shown := ""
	if !strings.ContainsAny(text, "@?") {
		shown = strconv.Quote(text) + " "
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		return nil, wrong(hint, "%sis not the URL of a server", shown)
	case !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme):
		return nil, wrong(hint, "%shas the scheme %q, which is not ws or wss", shown, u.Scheme)
	case u.User != nil && u.User.Username() == "":
		return nil, wrong("write wss://NAME@HOST for a user of a proxy in front, and give a token with --token-file", "has no user name before the @")
	case u.Fragment != "":
		return nil, wrong("remove what follows the #", "%shas a fragment", shown)
	case u.Hostname() == "":
		return nil, wrong(hint, "%snames no host", shown)
	}
	if strings.HasSuffix(u.Host, ":") {
		return nil, wrong(hint, "%shas a colon and no port", shown)
	}
	if p := u.Port(); p != "" {
		if _, err := (part{text: p}).port(1); err != nil {
			return nil, wrong("give one from 1 to 65535", "%shas the port %s, which is not valid", shown, p)
		}
	}
	if err := asciiHost(u); err != nil {
		return nil, wrong("give a host name that can be looked up", "%snames a host that cannot be", shown)
	}
	return u, nil
}

// asciiHost changes a host name in Unicode to its ASCII form.
func asciiHost(u *url.URL) error {
	name, err := hostname.ASCII(u.Hostname())
	if err == nil && name != u.Hostname() {
		u.Host = strings.Replace(u.Host, u.Hostname(), name, 1)
	}
	return err
}

// checkName checks a host name or an address.
func checkName(text string) error {
	_, err := (part{text: text, bracketed: strings.Contains(text, ":")}).host()
	return err
}

// checkPath checks the path of the upgrade request.
func checkPath(text string) error {
	if u, err := url.Parse(text); err != nil || !strings.HasPrefix(text, "/") || u.Path != text {
		return wrong("write it like / or /tunnel", "%q is not a path", text)
	}
	return nil
}

// checkUser checks the name of a user (RFC 7617). It does not repeat the text: behind a
// colon there may be the password.
func checkUser(text string) error {
	if strings.Contains(text, ":") {
		return wrong("give the password with --password-file or CULVERT_PASSWORD", "has a colon in it, which a user's name cannot have")
	}
	return nil
}

// checkPin checks the pin of a public key.
func checkPin(text string) error {
	encoded, ok := strings.CutPrefix(text, "sha256/")
	if sum, err := base64.StdEncoding.DecodeString(encoded); !ok || err != nil || len(sum) != sha256.Size {
		return wrong("write sha256/ and the sum in base64, 44 characters", "%q is not the pin of a key", text)
	}
	return nil
}

// checkKey checks a public key of culvert. It does not repeat the text: it may be the
// private one.
func checkKey(text string) error {
	fields := strings.Fields(text)
	if len(fields) > 1 && fields[0] == "culvert-key" {
		if key, err := base64.StdEncoding.DecodeString(fields[1]); err == nil && len(key) == 32 {
			return nil
		}
	}
	return wrong("write culvert-key and the key in base64, as keygen prints it", "is not a public key")
}

// checkDial checks an address to connect to.
func checkDial(text string) error {
	host, _, err := parseHostPort(text, 1)
	if err == nil && host == "" {
		err = wrong("write HOST:PORT with IPv6 addresses in brackets", "%q names no host", text)
	}
	return err
}

// checkListen checks an address to listen on.
func checkListen(text string) error {
	_, _, err := parseHostPort(text, 0)
	return err
}
