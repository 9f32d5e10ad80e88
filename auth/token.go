package auth

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

const (
	// minTokenLength is the number of characters below which a token is
	// reported as guessable.
	minTokenLength = 16
	// maxTokenLength bounds a token in bytes: it travels in one HTTP header.
	maxTokenLength = 4 << 10
	// maxTokenFile bounds a token file in bytes.
	maxTokenFile = 1 << 20
)

// Token is a bearer token of an identity. The token itself is not kept.
type Token struct {
	Sum     [sha256.Size]byte // SHA-256 of the token
	Label   string            // for logs
	Expires time.Time         // from then on it is not good; zero: never
}

// NewTokens makes an identity of each of the given tokens, with the given policy;
// the n-th is "token-n", counted from 1. It fails when there is none, when one is given twice
// or cannot be sent in an HTTP header. The warnings name weak tokens.
func NewTokens(policy Policy, tokens ...string) (identities []Identity, warnings []string, err error) {
	lines := make([]tokenLine, len(tokens))
	for i, token := range tokens {
		lines[i] = tokenLine{where: fmt.Sprintf("token %d", i+1), token: token}
	}
	return newTokens(policy, lines)
}

// ReadTokens reads a token file and makes of it what NewTokens does: one token a line, blank lines and lines that
// start with # ignored, at most 1 MiB. Identities count the tokens, not the
// lines. The warnings name weak tokens and a file that others than its owner can
// read.
func ReadTokens(policy Policy, path string) (identities []Identity, warnings []string, err error) {
	lines, exposed, err := readTokenFile(path)
	if err != nil {
		return nil, nil, err
	}
	identities, warnings, err = newTokens(policy, lines)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	for i := range warnings {
		warnings[i] = path + ": " + warnings[i]
	}
	return identities, append(exposed, warnings...), nil
}

// ReadToken reads the token that a client presents: the first of a token file, as
// ReadTokens reads it.
func ReadToken(path string) (token string, warnings []string, err error) {
	lines, warnings, err := readTokenFile(path)
	if err != nil {
		return "", nil, err
	}
	if err := lines[0].check(); err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	if w := lines[0].weakness(); w != "" {
		warnings = append(warnings, path+": "+w)
	}
	if n := len(lines); n > 1 {
		warnings = append(warnings, fmt.Sprintf("%s: holds %d tokens, the first is used", path, n))
	}
	return lines[0].token, warnings, nil
}

// Exposed returns a warning for each of the files, which hold a secret, that others
// than its owner can read. Paths that are empty or name no file are passed over.
func Exposed(paths ...string) (warnings []string) {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			if w := exposed(path, info); w != "" {
				warnings = append(warnings, w)
			}
		}
	}
	return warnings
}

func exposed(path string, info os.FileInfo) string {
	// Windows has no such mode bits; os invents 0666 and 0444 there. A pipe is
	// as private as whoever made it.
	if runtime.GOOS == "windows" || !info.Mode().IsRegular() || info.Mode().Perm()&0o044 == 0 {
		return ""
	}
	return fmt.Sprintf("%s: holds a secret and can be read by others than its owner (mode %04o); chmod 600 it",
		path, info.Mode().Perm())
}

// tokenLine is a token and where it stands, for messages: a message never shows
// the token itself.
type tokenLine struct {
	where string
	token string
}

// check reports a token that cannot travel as a bearer token (RFC 6750): empty,
// too long, or with other than visible ASCII characters in it.
func (l tokenLine) check() error {
	switch {
	case l.token == "":
		return fmt.Errorf("%s is empty", l.where)
	case len(l.token) > maxTokenLength:
		return fmt.Errorf("%s is longer than %d characters", l.where, maxTokenLength)
	}
	for i := range len(l.token) {
		if c := l.token[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("%s has a character that a token cannot have (visible ASCII only, no spaces) at position %d", l.where, i+1)
		}
	}
	return nil
}

func (l tokenLine) weakness() string {
	if len(l.token) >= minTokenLength {
		return ""
	}
	return fmt.Sprintf("%s has %d characters and can be guessed; use %d or more random ones", l.where, len(l.token), minTokenLength)
}

func newTokens(policy Policy, lines []tokenLine) ([]Identity, []string, error) {
	if len(lines) == 0 {
		return nil, nil, ErrNoTokens
	}
	identities := make([]Identity, len(lines))
	first := make(map[[sha256.Size]byte]string, len(lines))
	var warnings []string
	var errs []error
	for i, line := range lines {
		if err := line.check(); err != nil {
			errs = append(errs, err)
			continue
		}
		if looksSigned(line.token) {
			errs = append(errs, fmt.Errorf("%s is a signed token (JWT), which only its issuer's keys can tell to be good; configure the issuer instead", line.where))
			continue
		}
		sum := sha256.Sum256([]byte(line.token))
		if where, ok := first[sum]; ok {
			errs = append(errs, fmt.Errorf("%s is the same as %s", line.where, where))
			continue
		}
		first[sum] = line.where
		identities[i] = Identity{Name: fmt.Sprintf("token-%d", i+1), Tokens: []Token{{Sum: sum}}, Policy: policy}
		if w := line.weakness(); w != "" {
			warnings = append(warnings, w)
		}
	}
	if len(errs) > 0 {
		return nil, nil, errors.Join(errs...)
	}
	return identities, warnings, nil
}

// readTokenFile returns the tokens of a file, at least one and not yet checked,
// and a warning when others can read the file.
func readTokenFile(path string) (lines []tokenLine, warnings []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if w := exposed(path, info); w != "" {
		warnings = append(warnings, w)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	switch {
	case err != nil:
		return nil, nil, err
	case len(data) > maxTokenFile:
		return nil, nil, fmt.Errorf("%s: larger than %d bytes, so no token file", path, maxTokenFile)
	}
	lines = parseTokenFile(data)
	if len(lines) == 0 {
		return nil, nil, fmt.Errorf("%s: %w; write one token a line", path, ErrNoTokens)
	}
	return lines, warnings, nil
}

// parseTokenFile splits the contents of a token file; it keeps whatever is not
// blank and not a comment.
func parseTokenFile(data []byte) []tokenLine {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var lines []tokenLine
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		token := strings.TrimSpace(line)
		if token == "" || strings.HasPrefix(token, "#") {
			continue
		}
		lines = append(lines, tokenLine{where: fmt.Sprintf("the token in line %d", number), token: token})
	}
	return lines
}
