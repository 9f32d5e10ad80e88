package auth

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/go-jose/go-jose/v4/json"
)

// Claims is what a signed token must say to be one of an identity's: for each claim
// the texts of which it is one, or holds one if it is a list. The text "*" stands
// for any. Numbers and truth values are compared as they are written in JSON.
type Claims map[string][]string

// anything is the text that every value of a claim matches.
const anything = "*"

// match reports whether a token says all that c wants.
func (c Claims) match(said map[string]any) bool {
	for claim, wanted := range c {
		if !says(said[claim], wanted) {
			return false
		}
	}
	return true
}

func says(value any, wanted []string) bool {
	if list, ok := value.([]any); ok {
		return slices.ContainsFunc(list, func(v any) bool {
			_, nested := v.([]any)
			return !nested && says(v, wanted)
		})
	}
	var text string
	switch value := value.(type) {
	case string:
		text = value
	case bool:
		text = strconv.FormatBool(value)
	case json.Number:
		text = value.String()
	default:
		return false
	}
	return slices.ContainsFunc(wanted, func(want string) bool { return want == text || want == anything && text != "" })
}

// checkClaims says what is wrong with the claims of an identity. A subject is unique
// with one issuer only (OpenID Connect Core, 5.7), and a session belongs to a
// subject, so all are of one issuer.
func (d *Directory) checkClaims(id *Identity) error {
	var errs []error
	of := ""
	for _, claims := range id.Claims {
		if len(claims) == 0 {
			errs = append(errs, fmt.Errorf("identity %s has claims that say nothing", id.Name))
			continue
		}
		for claim, wanted := range claims {
			if len(wanted) == 0 || slices.Contains(wanted, "") {
				errs = append(errs, fmt.Errorf("identity %s wants nothing of the claim %q", id.Name, claim))
			}
		}
		issuer := ""
		switch wanted := claims["iss"]; {
		case len(d.issuers) == 0:
			errs = append(errs, fmt.Errorf("identity %s has claims, and no issuer of signed tokens is configured", id.Name))
			continue
		case len(wanted) == 0 && len(d.issuers) == 1:
			issuer = d.issuers[0].Issuer
		case len(wanted) == 0:
			errs = append(errs, fmt.Errorf("identity %s has claims without iss, and there is more than one issuer; name one", id.Name))
			continue
		case len(wanted) > 1 || d.issuer(wanted[0]) == nil:
			errs = append(errs, fmt.Errorf("identity %s wants tokens of %q, which is not a configured issuer", id.Name, wanted))
			continue
		default:
			issuer = wanted[0]
		}
		if of = cmp.Or(of, issuer); of != issuer {
			errs = append(errs, fmt.Errorf("identity %s has claims of two issuers, %s and %s; make it two identities", id.Name, of, issuer))
		}
	}
	return errors.Join(errs...)
}

// claimant finds the one identity that a token with these claims belongs to.
func (d *Directory) claimant(said map[string]any) (*Identity, error) {
	var owners []*Identity
	for _, id := range d.identities {
		if slices.ContainsFunc(id.Claims, func(c Claims) bool { return c.match(said) }) {
			owners = append(owners, id)
		}
	}
	return only(owners)
}

// only returns the identity that is alone in the list.
func only(owners []*Identity) (*Identity, error) {
	switch len(owners) {
	case 0:
		return nil, ErrNobodys
	case 1:
		return owners[0], nil
	}
	slices.SortFunc(owners, func(a, b *Identity) int { return cmp.Compare(a.Name, b.Name) })
	return nil, fmt.Errorf("%w: %s and %s", ErrAmbiguous, owners[0].Name, owners[1].Name)
}
