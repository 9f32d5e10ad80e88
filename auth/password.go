package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
)

// Password is the argon2id hash of a password of an identity. ParsePassword makes it.
type Password struct {
	text string // as it was read
	cost cost
	salt string
	hash string
}

// cost is what checking one password takes.
type cost struct {
	memory  uint32 // KiB
	passes  uint32
	threads uint8
	length  uint32 // of the hash in bytes
}

// usual is the second of the two recommendations of RFC 9106, 4, with one thread: a
// server has others to serve meanwhile.
var usual = cost{memory: 64 << 10, passes: 3, threads: 1, length: 32}

const (
	maxPasswordLength = 1 << 10 // bytes
	// maxPasswordFile leaves room for a byte order mark and the end of the line.
	maxPasswordFile = maxPasswordLength + 5

	maxPasswords = 4       // of an identity: each costs work when a password is wrong
	maxMemory    = 1 << 20 // KiB
	maxPasses    = 16
	maxThreads   = 16
)

var phcEncoding = base64.RawStdEncoding.Strict()

// HashPassword returns the text of a Password, with a salt of its own. It takes about
// a tenth of a second and 64 MiB.
func HashPassword(password string) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	hash := derive([]byte(password), salt, usual)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, usual.memory, usual.passes, usual.threads,
		phcEncoding.EncodeToString(salt), phcEncoding.EncodeToString(hash))
}

func derive(password, salt []byte, c cost) []byte {
	return argon2.IDKey(password, salt, c.passes, c.memory, c.threads, c.length)
}

// ReadPassword reads the password that a client presents: the one line of a file. The
// warnings are about a file that others than its owner can read.
func ReadPassword(path string) (password string, warnings []string, err error) {
	data, warnings, err := readSecretFile(path, maxPasswordFile)
	if err != nil {
		return "", nil, err
	}
	password = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if err := CheckPassword(password); err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return password, warnings, nil
}

// CheckPassword reports a password that cannot be used: an empty one, one of more than
// 1,024 bytes, or one with control characters, line ends included.
func CheckPassword(password string) error {
	switch {
	case password == "":
		return errors.New("the password is empty")
	case len(password) > maxPasswordLength:
		return fmt.Errorf("the password is longer than %d bytes", maxPasswordLength)
	case strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("the password has a control character in it, or is more than one line")
	}
	return nil
}

// ParsePassword reads "$argon2id$v=19$m=KIB,t=PASSES,p=THREADS$SALT$HASH", the PHC form
// that HashPassword and others write: at most 1 GiB, 16 passes and 16 threads. Its
// error says what is wrong and does not repeat the text, which may be a password in
// the wrong place.
func ParsePassword(text string) (Password, error) {
	const how = "write it like $argon2id$v=19$m=65536,t=3,p=1$SALT$HASH"
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return Password{}, errors.New("not the argon2id hash of a password; " + how)
	}
	if parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return Password{}, fmt.Errorf("not of version %d of argon2; %s", argon2.Version, how)
	}
	var c cost
	parameters := strings.Split(parts[3], ",")
	if len(parameters) != 3 {
		return Password{}, errors.New("not the three parameters m, t and p; " + how)
	}
	for i, p := range []struct {
		name       string
		least, max uint64
		store      func(uint32)
	}{
		{"m", 8, maxMemory, func(n uint32) { c.memory = n }},
		{"t", 1, maxPasses, func(n uint32) { c.passes = n }},
		{"p", 1, maxThreads, func(n uint32) { c.threads = uint8(n) }},
	} {
		digits, ok := strings.CutPrefix(parameters[i], p.name+"=")
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || n < p.least || n > p.max {
			return Password{}, fmt.Errorf("parameter %s is not between %d and %d; %s", p.name, p.least, p.max, how)
		}
		p.store(uint32(n))
	}
	if c.memory < 8*uint32(c.threads) {
		return Password{}, fmt.Errorf("parameter m is less than 8 for each thread; %s", how)
	}
	salt, err1 := phcEncoding.DecodeString(parts[4])
	hash, err2 := phcEncoding.DecodeString(parts[5])
	switch {
	case err1 != nil || len(salt) < 8 || len(salt) > 64:
		return Password{}, errors.New("the salt is not 8 to 64 bytes in base64 without padding; " + how)
	case err2 != nil || len(hash) < 16 || len(hash) > 64:
		return Password{}, errors.New("the hash is not 16 to 64 bytes in base64 without padding; " + how)
	}
	c.length = uint32(len(hash))
	return Password{text: text, cost: c, salt: string(salt), hash: string(hash)}, nil
}

// String keeps the hash out of logs: it can be guessed at.
func (Password) String() string { return "[hash of a password]" }

// costs are what a wrong password is made to cost in a directory, whoever is said to
// have it: of each cost, as many as the identity with most of them has.
type costs map[cost]int

// add adds those of id, and says what is wrong with them.
func (c *costs) add(id *Identity) error {
	if len(id.Passwords) == 0 {
		return nil
	}
	own := make(costs)
	for _, p := range id.Passwords {
		if p.text == "" {
			return fmt.Errorf("identity %s has an empty password", id.Name)
		}
		own[p.cost]++
	}
	if *c == nil {
		*c = make(costs)
	}
	for k, n := range own {
		(*c)[k] = max((*c)[k], n)
	}
	switch {
	case strings.ContainsRune(id.Name, ':'):
		return fmt.Errorf("identity %s cannot have a password, since there is a colon in its name", id.Name)
	case len(id.Passwords) > maxPasswords:
		return fmt.Errorf("identity %s has more than %d passwords", id.Name, maxPasswords)
	}
	return nil
}

const (
	// maxChecks passwords wait to be checked, one after the other, and
	// maxChecksPerAddress of those from one address. None waits for longer than
	// checkPatience.
	maxChecks           = 32
	maxChecksPerAddress = 4
	checkPatience       = 5 * time.Second
	// maxKnown passwords are kept in mind.
	maxKnown = 1 << 16
)

// verifier checks passwords, which is meant to take long: so one at a time, and a
// good one the first time only.
type verifier struct {
	derive func(password, salt []byte, c cost) []byte
	turn   chan struct{} // has room for whoever computes
	secret [32]byte      // made at start; what is kept in mind is worth nothing without it

	mu      sync.Mutex // guards the rest
	waiting int        // or computing
	byAddr  map[netip.Prefix]int
	good    map[knownPassword]mac
}

// knownPassword is a hash that a good password was shown for.
type knownPassword struct{ user, hash string }

type mac [sha256.Size]byte

func newVerifier() *verifier {
	v := &verifier{
		derive: derive, turn: make(chan struct{}, 1),
		byAddr: make(map[netip.Prefix]int), good: make(map[knownPassword]mac),
	}
	_, _ = rand.Read(v.secret[:]) // never fails
	return v
}

// attempt is a password that somebody shows.
type attempt struct {
	*verifier
	directory *Directory
	user      string
	password  string
	mac       mac
}

func (v *verifier) attempt(d *Directory, user, password string) *attempt {
	h := hmac.New(sha256.New, v.secret[:])
	fmt.Fprintf(h, "%d:%s%s", len(user), user, password)
	return &attempt{v, d, user, password, mac(h.Sum(nil))}
}

// passwords are those of the user.
func (a *attempt) passwords() []Password {
	if id := a.directory.identities[a.user]; id != nil {
		return id.Passwords
	}
	return nil
}

// known is the login of a password that was good before, and is still.
func (a *attempt) known() *Login {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.passwords() {
		if known, ok := a.good[knownPassword{a.user, p.text}]; ok && hmac.Equal(known[:], a.mac[:]) {
			return a.login(p)
		}
	}
	return nil
}

// check computes, when it is its turn. A wrong password takes the same work for every
// user and for those that there are not, and then a rest that is as long. key is where
// it comes from.
func (a *attempt) check(ctx context.Context, key netip.Prefix) (*Login, error) {
	leave, err := a.enter(ctx, key)
	if err != nil {
		return nil, err
	}
	defer leave()
	if login := a.known(); login != nil { // the same was before it in the queue
		return login, nil
	}
	start := time.Now()
	left := maps.Clone(a.directory.costs)
	for _, p := range a.passwords() {
		left[p.cost]--
		hash := a.derive([]byte(a.password), []byte(p.salt), p.cost)
		if subtle.ConstantTimeCompare(hash, []byte(p.hash)) == 1 {
			a.keep(p)
			return a.login(p), nil
		}
	}
	for c, n := range left {
		for range n {
			a.derive([]byte(a.password), make([]byte, 16), c)
		}
	}
	time.Sleep(time.Since(start)) // and with it its turn: others need the core
	return nil, ErrPassword
}

func (a *attempt) login(p Password) *Login {
	user := a.user
	return &Login{Identity: user, Credential: "password", valid: func(d *Directory) bool {
		id := d.identities[user]
		return id != nil && slices.ContainsFunc(id.Passwords, func(q Password) bool { return q.text == p.text })
	}}
}

// keep keeps in mind that the password is good.
func (a *attempt) keep(p Password) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for known := range a.good { // whichever: it costs its user one computation
		if len(a.good) < maxKnown {
			break
		}
		delete(a.good, known)
	}
	a.good[knownPassword{a.user, p.text}] = a.mac
}

// enter waits for the turn to compute, which leave ends.
func (v *verifier) enter(ctx context.Context, key netip.Prefix) (leave func(), err error) {
	v.mu.Lock()
	if v.waiting >= maxChecks || v.byAddr[key] >= maxChecksPerAddress {
		v.mu.Unlock()
		return nil, ErrBusy
	}
	v.waiting++
	v.byAddr[key]++
	v.mu.Unlock()
	forget := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.waiting--
		if v.byAddr[key]--; v.byAddr[key] == 0 {
			delete(v.byAddr, key)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, checkPatience, ErrBusy)
	defer cancel()
	select {
	case v.turn <- struct{}{}:
		return func() {
			<-v.turn
			forget()
		}, nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}
