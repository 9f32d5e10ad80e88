package auth

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // refuses a name that is there twice, and is exact about case
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// maxSubject bounds the subject of a signed token in characters (OpenID Connect
	// Core 1.0, 2).
	maxSubject = 255
	// leeway is how far the clocks of an issuer and of the server may be apart.
	leeway = 30 * time.Second
)

// algorithms are all that a signed token may be signed with.
var algorithms = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256}

// Issuer signs tokens (JWT, RFC 7519) that say who a client is.
type Issuer struct {
	Issuer   string // the claim iss is exactly this
	Audience string // the claim aud is this, or holds it
	Keys     KeySource
}

// looksSigned reports whether a bearer token is a signed one: three parts, the first
// of which is a JSON object. Nothing else is looked at to decide, so that no token is
// taken for both kinds.
func looksSigned(token string) bool {
	header, rest, _ := strings.Cut(token, ".")
	if strings.Count(rest, ".") != 1 {
		return false
	}
	data, err := base64.RawURLEncoding.DecodeString(header)
	var object map[string]stdjson.RawMessage
	return err == nil && stdjson.Unmarshal(data, &object) == nil && object != nil
}

// addIssuer takes an issuer into d.
func (d *Directory) addIssuer(i Issuer) error {
	d.issuers = append(d.issuers, i)
	switch {
	case i.Issuer == "":
		return errors.New("an issuer of signed tokens has no name")
	case i.Audience == "":
		return fmt.Errorf("issuer %s has no audience: tokens for other services would be good here", i.Issuer)
	case i.Keys == nil:
		return fmt.Errorf("issuer %s has no keys", i.Issuer)
	case d.issuer(i.Issuer) != &d.issuers[len(d.issuers)-1]:
		return fmt.Errorf("issuer %s is there twice", i.Issuer)
	}
	return nil
}

// issuer finds the issuer of this name, nil if there is none.
func (d *Directory) issuer(name string) *Issuer {
	i := slices.IndexFunc(d.issuers, func(i Issuer) bool { return i.Issuer == name })
	if i < 0 {
		return nil
	}
	return &d.issuers[i]
}

// signedToken is a token that was good.
type signedToken struct {
	issuer   string
	audience string
	key      crypto.PublicKey // that it is signed with
	claims   map[string]any
	subject  string
	until    time.Time
}

func (d *Directory) loginSigned(ctx context.Context, text string) (*Login, error) {
	token, err := d.verify(ctx, text)
	if err != nil {
		return nil, fmt.Errorf("signed token: %w", err)
	}
	owner, err := d.claimant(token.claims)
	if err != nil {
		return nil, fmt.Errorf("signed token for %s: %w", token.subject, err)
	}
	name := owner.Name
	return &Login{
		Identity: name + "/" + token.subject, Credential: "signed token of " + token.issuer, Until: token.until,
		valid: func(d *Directory) bool { return d.stillSigned(token, name) },
	}, nil
}

// verify returns a token whose signature, issuer, audience and times are good. Only
// the name of the issuer is read before the signature is verified.
func (d *Directory) verify(ctx context.Context, text string) (*signedToken, error) {
	if len(text) > maxTokenLength {
		return nil, fmt.Errorf("longer than %d characters", maxTokenLength)
	}
	signed, err := jose.ParseSignedCompact(text, algorithms)
	if err != nil {
		return nil, err
	}
	header := signed.Signatures[0].Header
	if err := checkHeader(header); err != nil {
		return nil, err
	}
	var unverified jwt.Claims
	if err := json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &unverified); err != nil {
		return nil, err
	}
	issuer := d.issuer(unverified.Issuer)
	if issuer == nil {
		return nil, fmt.Errorf("%w: %.200q", ErrUnknownIssuer, unverified.Issuer)
	}
	keys, err := issuer.Keys.Lookup(ctx, header.KeyID)
	if err != nil {
		return nil, fmt.Errorf("key %.100q of %s: %w", header.KeyID, issuer.Issuer, err)
	}
	payload, key := verifySignature(signed, keys)
	if payload == nil {
		return nil, fmt.Errorf("%w of %s", ErrSignature, issuer.Issuer)
	}

	token := &signedToken{issuer: issuer.Issuer, audience: issuer.Audience, key: key}
	var claims jwt.Claims
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, err
	}
	if token.claims, err = parseClaims(payload); err != nil {
		return nil, err
	}
	if err := checkTimes(claims); err != nil {
		return nil, err
	}
	if claims.Issuer != issuer.Issuer || !claims.Audience.Contains(issuer.Audience) {
		return nil, fmt.Errorf("%w: for %.200q, and not for %s", ErrAudience, claims.Audience, issuer.Audience)
	}
	if n := utf8.RuneCountInString(claims.Subject); n < 1 || n > maxSubject {
		return nil, fmt.Errorf("its subject (sub) has %d characters, not 1 to %d", n, maxSubject)
	}
	token.subject = printable(claims.Subject)
	token.until = claims.Expiry.Time().Add(leeway)
	return token, nil
}

// parseClaims reads what a token says, its numbers as json.Number: as float64 two
// accounts with long numbers could be one.
func parseClaims(payload []byte) (said map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.SetNumberType(json.UnmarshalJSONNumber)
	err = d.Decode(&said)
	return said, err
}

// checkHeader refuses what a token for this purpose does not have (RFC 8725, 3.11;
// RFC 9068): other types, and extensions that a reader must understand.
func checkHeader(header jose.Header) error {
	if _, ok := header.ExtraHeaders["crit"]; ok {
		return errors.New("has critical extensions")
	}
	kind := ""
	if value, ok := header.ExtraHeaders[jose.HeaderType]; ok {
		kind = strings.TrimPrefix(strings.ToLower(fmt.Sprint(value)), "application/")
	}
	if !slices.Contains([]string{"", "jwt", "at+jwt"}, kind) {
		return fmt.Errorf("of type %.100q, and not JWT or at+jwt", kind)
	}
	return nil
}

// verifySignature returns the payload and the key that it is signed with, nil if
// none of keys has signed it. A key is tried only if the token's algorithm is its own.
func verifySignature(signed *jose.JSONWebSignature, keys KeySet) ([]byte, crypto.PublicKey) {
	for _, key := range keys {
		if signed.Signatures[0].Header.Algorithm != string(key.algorithm) {
			continue
		}
		if payload, err := signed.Verify(key.public); err == nil {
			return payload, key.public
		}
	}
	return nil, nil
}

func checkTimes(claims jwt.Claims) error {
	if claims.Expiry == nil {
		return errors.New("has no end (exp)")
	}
	err := claims.ValidateWithLeeway(jwt.Expected{}, leeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return ErrExpired
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return ErrNotYet
	}
	return err
}

// stillSigned reports whether a token that was good, but for its end, is still one of
// the identity: d trusts its issuer, has not lost its key, and knows nobody else by
// its claims.
func (d *Directory) stillSigned(token *signedToken, name string) bool {
	issuer := d.issuer(token.issuer)
	if issuer == nil || issuer.Audience != token.audience {
		return false
	}
	if keys := issuer.Keys.Known(); keys != nil && !keys.has(token.key) {
		return false
	}
	owner, err := d.claimant(token.claims)
	return err == nil && owner.Name == name
}

// printable is what a peer calls itself, as it can stand in a log and in a name: as
// it is if that is harmless, and else quoted.
func printable(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '"' || r == '\\'
	}) {
		return text
	}
	return strconv.Quote(text)
}
