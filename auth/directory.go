package auth

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Directory is who may connect and what each may do. It is immutable.
type Directory struct {
	identities map[string]*Identity
	tokens     map[[sha256.Size]byte]ownedToken
	costs      costs // of a wrong password
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
	d := &Directory{
		identities: make(map[string]*Identity), anybody: cfg.Anybody,
		tokens: make(map[[sha256.Size]byte]ownedToken),
	}
	var errs []error
	for i := range cfg.Identities {
		id := &cfg.Identities[i]
		if id.Name == "" || strings.Contains(id.Name, "/") {
			errs = append(errs, fmt.Errorf("%q is not a name for an identity", id.Name))
		}
		if d.identities[id.Name] != nil {
			errs = append(errs, fmt.Errorf("identity %s is there twice", id.Name))
		}
		d.identities[id.Name] = id
		if err := d.costs.add(id); err != nil {
			errs = append(errs, err)
		}
		for _, t := range id.Tokens {
			if other, ok := d.tokens[t.Sum]; ok {
				errs = append(errs, fmt.Errorf("a token of identity %s is also one of %s", id.Name, other.owner.Name))
			}
			d.tokens[t.Sum] = ownedToken{t, id}
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

// login finds whose credential is presented. It takes no time worth counting; a
// password, which would, is errPassword.
func (d *Directory) login(p Presented) (*Login, error) {
	switch {
	case p.Garbled:
		return nil, ErrGarbled
	case p.Bearer != "":
		return d.loginToken(p.Bearer)
	case p.User != "" && len(d.costs) == 0:
		return nil, ErrPassword
	case p.User != "":
		return nil, errPassword
	case d.anybody != nil:
		return &Login{Identity: d.anybody.Name, Credential: "none", valid: func(d *Directory) bool { return d.anybody != nil }}, nil
	default:
		return nil, ErrNoCredential
	}
}

// loginToken looks the token up by its SHA-256. How long that takes may depend on the
// sum, which tells nothing: whoever guesses tokens cannot choose sums that come closer
// to one in the directory, since that takes as many guesses as the token itself.
func (d *Directory) loginToken(token string) (*Login, error) {
	sum := sha256.Sum256([]byte(token))
	found, ok := d.tokens[sum]
	if !ok {
		return nil, ErrUnknownToken
	}
	if !found.Expires.IsZero() && !time.Now().Before(found.Expires) {
		return nil, ErrExpired
	}
	return &Login{
		Identity: found.owner.Name, Credential: strings.TrimSpace("token " + found.Label), Until: found.Expires,
		valid: func(d *Directory) bool {
			now, ok := d.tokens[sum]
			sooner := !now.Expires.IsZero() && (found.Expires.IsZero() || now.Expires.Before(found.Expires))
			return ok && now.owner.Name == found.owner.Name && !sooner
		},
	}, nil
}
