package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Directory is who may connect and what each may do. It is immutable.
type Directory struct {
	identities   map[string]*Identity
	tokens       map[[sha256.Size]byte]ownedToken
	costs        costs // of a wrong password
	keys         map[[keySize]byte]ownedKey
	issuers      []Issuer
	clientCAs    *ClientCAs
	certificates map[CertificateName]*Identity
	anybody      *Identity
}

type ownedToken struct {
	Token
	owner *Identity
}

type ownedKey struct {
	PublicKey
	owner *Identity
}

// DirectoryConfig is what a Directory is made of.
type DirectoryConfig struct {
	Identities []Identity
	// Anybody is who comes without a credential; nil: nobody may.
	Anybody *Identity
	// Issuers sign tokens that say who a client is; nil: none are good.
	Issuers []Issuer
	// ClientCAs issue the certificates of clients; nil: none are good.
	ClientCAs *ClientCAs
}

// NewDirectory returns a directory of cfg, or everything that is wrong with it.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	d := &Directory{
		identities: make(map[string]*Identity), anybody: cfg.Anybody,
		tokens:    make(map[[sha256.Size]byte]ownedToken),
		keys:      make(map[[keySize]byte]ownedKey),
		clientCAs: cfg.ClientCAs, certificates: make(map[CertificateName]*Identity),
	}
	var errs []error
	for _, issuer := range cfg.Issuers {
		errs = append(errs, d.addIssuer(issuer))
	}
	for i := range cfg.Identities {
		id := &cfg.Identities[i]
		if id.Name == "" || strings.Contains(id.Name, "/") {
			errs = append(errs, fmt.Errorf("%q is not a name for an identity", id.Name))
		}
		if d.identities[id.Name] != nil {
			errs = append(errs, fmt.Errorf("identity %s is there twice", id.Name))
		}
		if err := errors.Join(id.Limits.check(), id.Shared.check()); err != nil {
			errs = append(errs, fmt.Errorf("identity %s: %w", id.Name, err))
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
		for _, k := range id.Keys {
			if other, ok := d.keys[k.Bytes]; ok {
				errs = append(errs, fmt.Errorf("key %s of identity %s is also one of %s", k.Fingerprint(), id.Name, other.owner.Name))
			}
			d.keys[k.Bytes] = ownedKey{k, id}
		}
		errs = append(errs, d.checkClaims(id), d.addCertificates(id))
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

// judge asks the policy of an identity.
func (d *Directory) judge(identity string, q question) Verdict {
	id := d.lookup(identity)
	if id == nil {
		return Verdict{Rule: -1, Why: "no such identity"}
	}
	return id.Policy.judge(q)
}

// login finds whose credential is presented. It may block for as long as ctx lives
// while the keys of an issuer are fetched, and takes no time worth counting else; a
// password, which would, is errPassword.
func (d *Directory) login(ctx context.Context, p Presented) (*Login, error) {
	switch {
	case p.Key != nil:
		return d.loginKey(*p.Key)
	case p.Garbled:
		return nil, ErrGarbled
	case looksSigned(p.Bearer):
		return d.loginSigned(ctx, p.Bearer)
	case p.Bearer != "":
		return d.loginToken(p.Bearer)
	case p.User != "" && len(d.costs) == 0:
		return nil, ErrPassword
	case p.User != "":
		return nil, errPassword
	case len(p.Certificates) > 0:
		return d.loginCertificate(p.Certificates)
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

// loginKey needs to hide nothing: public keys are public.
func (d *Directory) loginKey(key [keySize]byte) (*Login, error) {
	found, ok := d.keys[key]
	if !ok {
		return nil, fmt.Errorf("%w %s", ErrUnknownKey, PublicKey{Bytes: key}.Fingerprint())
	}
	return &Login{
		Identity: found.owner.Name, Credential: strings.TrimSpace("key " + found.Fingerprint() + " " + found.Comment),
		valid: func(d *Directory) bool {
			now, ok := d.keys[key]
			return ok && now.owner.Name == found.owner.Name
		},
	}, nil
}
