package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Directory is who may connect and what each may do. It is immutable.
type Directory struct {
	identities map[string]*Identity
	tokens     []ownedToken
	anybody    *Identity
}

type ownedToken struct {
	Token
	owner *Identity
}

// DirectoryConfig is what a Directory is made of.
type DirectoryConfig struct {
	Identities []Identity
	// Anybody is who comes without a credential; nil: nobody may.
	Anybody *Identity
}

// NewDirectory returns a directory of cfg, or everything that is wrong with it.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	d := &Directory{identities: make(map[string]*Identity), anybody: cfg.Anybody}
	var errs []error
	sums := make(map[[sha256.Size]byte]string)
	for i := range cfg.Identities {
		id := &cfg.Identities[i]
		if id.Name == "" || strings.Contains(id.Name, "/") {
			errs = append(errs, fmt.Errorf("%q is not a name for an identity", id.Name))
		}
		if d.identities[id.Name] != nil {
			errs = append(errs, fmt.Errorf("identity %s is there twice", id.Name))
		}
		if err := id.Limits.check(); err != nil {
			errs = append(errs, fmt.Errorf("identity %s: %w", id.Name, err))
		}
		d.identities[id.Name] = id
		for _, t := range id.Tokens {
			if other, ok := sums[t.Sum]; ok {
				errs = append(errs, fmt.Errorf("a token of identity %s is also one of %s", id.Name, other))
			}
			sums[t.Sum] = id.Name
			d.tokens = append(d.tokens, ownedToken{t, id})
		}
	}
	return d, errors.Join(errs...)
}

// Everybody is a directory that lets everybody in, as the identity "", to whatever
// is not denied to all.
func Everybody() *Directory {
	return &Directory{anybody: &Identity{Policy: Everything()}}
}

// lookup finds the identity that a login's name belongs to, nil if there is none.
func (d *Directory) lookup(name string) *Identity {
	if name == "" {
		return d.anybody
	}
	name, _, _ = strings.Cut(name, "/")
	return d.identities[name]
}

// login finds whose credential is presented.
func (d *Directory) login(p Presented) (*Login, error) {
	switch {
	case p.Bearer != "":
		return d.loginToken(p.Bearer)
	case d.anybody != nil:
		return &Login{Identity: d.anybody.Name, Credential: "none", valid: func(d *Directory) bool { return d.anybody != nil }}, nil
	default:
		return nil, ErrNoCredential
	}
}

// loginToken takes as long for one token as for another, whether and where it is
// found.
func (d *Directory) loginToken(token string) (*Login, error) {
	sum := sha256.Sum256([]byte(token))
	found := d.token(sum)
	if found == nil {
		return nil, ErrUnknownToken
	}
	if !found.Expires.IsZero() && !time.Now().Before(found.Expires) {
		return nil, ErrExpired
	}
	return &Login{
		Identity: found.owner.Name, Credential: strings.TrimSpace("token " + found.Label), Until: found.Expires,
		valid: func(d *Directory) bool {
			now := d.token(sum)
			return now != nil && now.owner.Name == found.owner.Name
		},
	}, nil
}

func (d *Directory) token(sum [sha256.Size]byte) *ownedToken {
	found := 0
	for i := range d.tokens {
		same := subtle.ConstantTimeCompare(sum[:], d.tokens[i].Sum[:])
		found = subtle.ConstantTimeSelect(same, i+1, found)
	}
	if found == 0 {
		return nil
	}
	return &d.tokens[found-1]
}
