package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys bounds the keys of one issuer: a token that names none is tried with
	// each.
	maxKeys = 32
	// minRSA is the fewest bits of an RSA key (RFC 7518, 3.3).
	minRSA = 2048
)

// Key is a public key of an issuer. Its kind decides which algorithm it verifies,
// never the token.
type Key struct {
	id        string // "kid" of the JWK, "" for none
	algorithm jose.SignatureAlgorithm
	public    crypto.PublicKey
}

// KeySource has the keys of an issuer. Its methods may be called concurrently.
type KeySource interface {
	// Lookup returns the keys that a token may be signed with which names kid, ""
	// for none. It may fetch them, for as long as ctx lives, and bounds how often
	// strangers with invented names can make it. The error is [ErrUnknownKey] if the
	// issuer has no such key, and [ErrUnavailable] if that cannot be known now.
	Lookup(ctx context.Context, kid string) (KeySet, error)
	// Known returns all keys that are known, nil if none are yet. It does not block.
	Known() KeySet
}

// KeySet is a KeySource that never changes.
type KeySet []Key

// Lookup implements KeySource.
func (s KeySet) Lookup(_ context.Context, kid string) (KeySet, error) {
	if found := s.Named(kid); len(found) > 0 {
		return found, nil
	}
	return nil, ErrUnknownKey
}

// Known implements KeySource.
func (s KeySet) Known() KeySet { return s }

// Named returns the keys that kid, "" for any, can mean: also those without a name.
func (s KeySet) Named(kid string) KeySet {
	var found KeySet
	for _, key := range s {
		if kid == "" || key.id == "" || key.id == kid {
			found = append(found, key)
		}
	}
	return found
}

// has reports whether a key is in s.
func (s KeySet) has(public crypto.PublicKey) bool {
	for _, key := range s {
		if key.public.(interface{ Equal(crypto.PublicKey) bool }).Equal(public) {
			return true
		}
	}
	return false
}

// ParseKeys reads the public keys of an issuer, 32 at most: a JSON Web Key Set, one
// JSON Web Key, or PEM (public keys and certificates, of which only the key counts).
// Keys of a set that are for something else are passed over; there must be one for
// EdDSA (Ed25519), ES256 (P-256) or RS256 (RSA of 2,048 bits or more).
func ParseKeys(data []byte) (KeySet, error) {
	var keys KeySet
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		keys, err = parseJWKS(data)
	} else {
		keys, err = parsePEM(data)
	}
	switch {
	case err != nil:
		return nil, err
	case len(keys) == 0:
		return nil, errors.New("no key for EdDSA (Ed25519), ES256 (P-256) or RS256 (RSA, 2048 bits or more) in it")
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("%d keys, more than %d", len(keys), maxKeys)
	}
	return keys, nil
}

func parseJWKS(data []byte) (KeySet, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	if set.Keys == nil {
		set.Keys = []json.RawMessage{data}
	}
	var keys KeySet
	for _, raw := range set.Keys {
		var jwk jose.JSONWebKey
		// RFC 7517, 5: what is not understood is ignored.
		if json.Unmarshal(raw, &jwk) != nil || jwk.Use != "" && jwk.Use != "sig" {
			continue
		}
		key, err := newKey(jwk.KeyID, jwk.Key)
		if err == nil && (jwk.Algorithm == "" || jwk.Algorithm == string(key.algorithm)) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func parsePEM(data []byte) (KeySet, error) {
	var keys KeySet
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return keys, nil
		}
		var public any
		var err error
		switch {
		case block.Type == "PUBLIC KEY":
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case block.Type == "RSA PUBLIC KEY":
			public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case block.Type == "CERTIFICATE":
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				public = cert.PublicKey
			}
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			err = errors.New("a private key, which belongs to the issuer alone; give the public one")
		default:
			err = errors.New("not a public key")
		}
		if err != nil {
			return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
		}
		key, err := newKey("", public)
		if err != nil {
			return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
		}
		keys = append(keys, key)
	}
}

func newKey(id string, public any) (Key, error) {
	key := Key{id: id, public: public}
	switch public := public.(type) {
	case ed25519.PublicKey:
		key.algorithm = jose.EdDSA
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return Key{}, fmt.Errorf("a key on the curve %s; ES256 has P-256", public.Params().Name)
		}
		key.algorithm = jose.ES256
	case *rsa.PublicKey:
		if public.N.BitLen() < minRSA {
			return Key{}, fmt.Errorf("an RSA key of %d bits, fewer than %d", public.N.BitLen(), minRSA)
		}
		key.algorithm = jose.RS256
	default:
		return Key{}, errors.New("neither an Ed25519, a P-256 nor an RSA key")
	}
	return key, nil
}
