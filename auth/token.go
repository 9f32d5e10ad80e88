package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert/auth/textfile"
)

const (
	// minTokenLength is the number of characters below which a token is
	// reported as guessable.
	minTokenLength = 16
	// maxTokenLength bounds a token in bytes: it travels in one HTTP header.
	maxTokenLength = 16 << 10
	// maxTokenFile bounds a token file in bytes.
	maxTokenFile = 1 << 20
)

// Token is a bearer token of an identity. The token itself is not kept.
type Token struct {
	Sum     [sha256.Size]byte // SHA-256 of the token
	Label   string            // for logs
	Expires time.Time         // from then on it is not good; zero: never
}

const (
	// tokenPrefix begins the tokens that are made here: whoever looks for secrets
	// that got into a repository or a log finds them by it.
	tokenPrefix = "culvert_"
	hashPrefix  = "sha256:"
)

// NewToken makes a token of 256 random bits, as a text that can stand in a URL, and
// what the server needs to know of it, without a label and an end.
func NewToken() (token string, t Token) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return token, Token{Sum: sha256.Sum256([]byte(token))}
}

// Hash is the token's sum in the form that ParseTokenHash reads.
func (t Token) Hash() string { return hashPrefix + hex.EncodeToString(t.Sum[:]) }

// ParseTokenHash reads "sha256:" and the SHA-256 of a token, 64 hexadecimal digits.
// Its error says how it is written and does not repeat the text, which may be a
// token in the wrong place.
func ParseTokenHash(text string) (sum [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(text, hashPrefix)
	if n, err := hex.Decode(sum[:], []byte(digits[:min(len(digits), 2*sha256.Size)])); !ok || err != nil ||
		n != sha256.Size || len(digits) != 2*sha256.Size {
		return sum, errors.New("not the hash of a token; write sha256: and 64 hexadecimal digits")
	}
	return sum, nil
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

// ReadTokens reads a token file and makes of it what NewTokens does: one token a
// line, or its hash as ParseTokenHash reads it and perhaps a space and a label; blank
// lines and lines that start with # ignored, at most 1 MiB. Identities count the
// tokens, not the lines. The warnings name weak tokens and a file with tokens in it
// that others than its owner can read.
func ReadTokens(policy Policy, path string) (identities []Identity, warnings []string, err error) {
	lines, exposed, err := readTokenFile(path)
	if err != nil {
		return nil, nil, err
	}
	if !slices.ContainsFunc(lines, func(l tokenLine) bool { return !l.hashed() }) {
		exposed = nil // there is no secret in it
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

// KeepNames gives the identities of a list of tokens, as NewTokens and ReadTokens make
// them, the names that their tokens have in d already, and to those of new tokens names
// that nobody has: a list that has lost a line leaves the others who they were.
func (d *Directory) KeepNames(identities []Identity) {
	taken := make(map[string]bool)
	for name := range d.identities {
		taken[name] = true
	}
	number := 0
	for i := range identities {
		id := &identities[i]
		if before, ok := d.tokens[id.Tokens[0].Sum]; ok && strings.HasPrefix(before.owner.Name, namePrefix) {
			id.Name = before.owner.Name
			continue
		}
		for id.Name = ""; id.Name == ""; {
			if number++; !taken[tokenName(number)] {
				id.Name = tokenName(number)
			}
		}
	}
}

// namePrefix begins the names of tokens in a list.
const namePrefix = "token-"

func tokenName(number int) string { return namePrefix + strconv.Itoa(number) }

// CheckToken says what is wrong with a token that a client presents, and whether it is
// weak.
func CheckToken(token string) (warnings []string, err error) {
	line := tokenLine{where: "the token", token: token}
	if err := line.check(); err != nil {
		return nil, err
	}
	if w := line.weakness(); w != "" {
		warnings = append(warnings, w)
	}
	return warnings, nil
}

// ReadToken reads the token that a client presents: the first of a token file, as
// ReadTokens reads it.
func ReadToken(path string) (token string, warnings []string, err error) {
	lines, warnings, err := readTokenFile(path)
	if err != nil {
		return "", nil, err
	}
	if lines[0].hashed() {
		return "", nil, fmt.Errorf("%s: %s is only its hash, which is for the server; write the token itself", path, lines[0].where)
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
// than its owner can read or change. Paths that are empty or name no file are passed over.
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
	mode := info.Mode().Perm()
	var can string
	switch readable, writable := mode&readableByOthers != 0, mode&writableByOthers != 0; {
	case !hasMode(info) || !readable && !writable:
		return ""
	case readable && writable:
		can = "read and changed"
	case readable:
		can = "read"
	default:
		can = "changed"
	}
	return fmt.Sprintf("%s: holds a secret and can be %s by others than its owner (mode %04o); chmod 600 it", path, can, mode)
}

// tokenLine is a token and where it stands, for messages: a message never shows
// the token itself.
type tokenLine struct {
	where string
	token string // or the hash of one, with a label
}

func (l tokenLine) hashed() bool { return strings.HasPrefix(l.token, hashPrefix) }

// parse is what a server keeps of the line.
func (l tokenLine) parse() (Token, error) {
	if !l.hashed() {
		return Token{Sum: sha256.Sum256([]byte(l.token))}, l.check()
	}
	hash, label, _ := strings.Cut(l.token, " ")
	sum, err := ParseTokenHash(hash)
	if err != nil {
		return Token{}, fmt.Errorf("%s is %w", l.where, err)
	}
	return Token{Sum: sum, Label: strings.TrimSpace(label)}, nil
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
	if l.hashed() || len(l.token) >= minTokenLength {
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
		token, err := line.parse()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if looksSigned(line.token) {
			errs = append(errs, fmt.Errorf("%s is a signed token (JWT), which only its issuer's keys can tell to be good; configure the issuer instead", line.where))
			continue
		}
		if where, ok := first[token.Sum]; ok {
			errs = append(errs, fmt.Errorf("%s is the same as %s", line.where, where))
			continue
		}
		first[token.Sum] = line.where
		identities[i] = Identity{Name: tokenName(i + 1), Tokens: []Token{token}, Policy: policy}
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
	data, warnings, err := readSecretFile(path, maxTokenFile)
	if err != nil {
		return nil, nil, err
	}
	lines = parseTokenFile(data)
	if len(lines) == 0 {
		return nil, nil, fmt.Errorf("%s: %w; write one token a line", path, ErrNoTokens)
	}
	return lines, warnings, nil
}

// readSecretFile reads a text file of at most limit bytes, and warns if others than its
// owner can read or change it.
func readSecretFile(path string, limit int64) (text []byte, warnings []string, err error) {
	text, err = textfile.Read(path, limit)
	if err != nil {
		return nil, nil, err
	}
	return text, Exposed(path), nil
}

// parseTokenFile splits the contents of a token file; it keeps whatever is not
// blank and not a comment.
func parseTokenFile(data []byte) []tokenLine {
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
