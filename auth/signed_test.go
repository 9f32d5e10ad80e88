package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	testIssuer   = "https://issuer.example"
	testAudience = "culvert"
)

// signer signs tokens as an issuer does.
type signer struct {
	alg jose.SignatureAlgorithm
	key crypto.Signer
	id  string
}

func newSigner(t testing.TB, alg jose.SignatureAlgorithm, id string) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case jose.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case jose.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{alg, key, id}
}

// sign makes a token of claims, with more in its header than it needs.
func (s signer) sign(t testing.TB, claims map[string]any, header map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return s.signBytes(t, payload, header)
}

func (s signer) signBytes(t testing.TB, payload []byte, header map[string]any) string {
	t.Helper()
	options := new(jose.SignerOptions)
	if s.id != "" {
		options.WithHeader("kid", s.id)
	}
	for name, value := range header {
		options.WithHeader(jose.HeaderKey(name), value)
	}
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := js.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// keys is what the world knows of signers.
func keys(t testing.TB, signers ...signer) KeySet {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range signers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id})
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseKeys(data)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// claim returns the claims of a good token, with changes; nil takes one away.
func claim(changes map[string]any) map[string]any {
	now := time.Now()
	claims := map[string]any{
		"iss": testIssuer, "aud": testAudience, "sub": "alice", "groups": []string{"staff", "admins"},
		"exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nbf": now.Unix(),
	}
	for name, value := range changes {
		claims[name] = value
		if value == nil {
			delete(claims, name)
		}
	}
	return claims
}

func mustDirectory(t testing.TB, cfg DirectoryConfig) *Directory {
	t.Helper()
	d, err := NewDirectory(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// admins is a directory with one issuer and one identity.
func admins(t testing.TB, keys KeySource) *Directory {
	t.Helper()
	return mustDirectory(t, DirectoryConfig{
		Identities: []Identity{{Name: "ops", Claims: []Claims{{"groups": {"admins"}}}}},
		Issuers:    []Issuer{{Issuer: testIssuer, Audience: testAudience, Keys: keys}},
	})
}

func bearer(text string) Presented { return Presented{Bearer: text} }

func TestSignedTokens(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			s := newSigner(t, alg, "one")
			claims := claim(nil)
			login, err := admins(t, keys(t, newSigner(t, alg, "other"), s)).login(t.Context(), bearer(s.sign(t, claims, nil)))
			if err != nil {
				t.Fatal(err)
			}
			if login.Identity != "ops/alice" || login.Credential != "signed token of "+testIssuer {
				t.Errorf("it is %q by %q", login.Identity, login.Credential)
			}
			if end := time.Unix(claims["exp"].(int64), 0).Add(leeway); !login.Until.Equal(end) {
				t.Errorf("good until %v, want %v", login.Until, end)
			}
		})
	}
}

// TestSignedTokenDetails is about what a good token may look like.
func TestSignedTokenDetails(t *testing.T) {
	s := newSigner(t, jose.EdDSA, "one")
	d := admins(t, keys(t, s))
	now := time.Now()
	for _, tt := range []struct {
		name     string
		claims   map[string]any
		header   map[string]any
		identity string
	}{
		{"several audiences", map[string]any{"aud": []string{"other", testAudience}}, nil, "ops/alice"},
		{"clock of the issuer behind", map[string]any{"exp": now.Add(-15 * time.Second).Unix()}, nil, "ops/alice"},
		{"clock of the issuer ahead", map[string]any{"nbf": now.Add(15 * time.Second).Unix(), "iat": now.Add(15 * time.Second).Unix()}, nil, "ops/alice"},
		{"neither iat nor nbf", map[string]any{"iat": nil, "nbf": nil}, nil, "ops/alice"},
		{"one group, not in a list", map[string]any{"groups": "admins"}, nil, "ops/alice"},
		{"an access token", nil, map[string]any{"typ": "at+jwt"}, "ops/alice"},
		{"a type with its prefix", nil, map[string]any{"typ": "application/AT+JWT"}, "ops/alice"},
		{"a slash in the subject", map[string]any{"sub": "realm/alice@example.com"}, nil, "ops/realm/alice@example.com"},
		{"a subject that would break a line", map[string]any{"sub": "a\nb"}, nil, `ops/"a\nb"`},
		{"a long subject", map[string]any{"sub": strings.Repeat("ä", 255)}, nil, "ops/" + strings.Repeat("ä", 255)},
		{"many claims", map[string]any{"groups": append(strings.Fields(strings.Repeat("group-with-a-name ", 500)), "admins")}, nil, "ops/alice"},
		{"a subject that looks quoted", map[string]any{"sub": `"a"`}, nil, `ops/"\"a\""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			login, err := d.login(t.Context(), bearer(s.sign(t, claim(tt.claims), tt.header)))
			if err != nil || login.Identity != tt.identity {
				t.Errorf("login %+v, %v, want %q", login, err, tt.identity)
			}
		})
	}
}

// TestSignedTokenAttacks has tokens that are to be refused, each good but for one thing.
func TestSignedTokenAttacks(t *testing.T) {
	s := newSigner(t, jose.RS256, "one")
	stranger := newSigner(t, jose.RS256, "one")
	other := newSigner(t, jose.EdDSA, "two") // of the other issuer
	const otherIssuer = "https://other.example"
	d := mustDirectory(t, DirectoryConfig{
		Identities: []Identity{
			{Name: "ops", Claims: []Claims{{"iss": {testIssuer}, "groups": {"admins"}}}},
			{Name: "guests", Claims: []Claims{{"iss": {otherIssuer}, "groups": {"admins"}}}},
			{Name: "mailers", Claims: []Claims{{"iss": {testIssuer}, "mail": {"*"}}}},
			{Name: "posters", Claims: []Claims{{"iss": {testIssuer}, "mail": {"both@example.com"}}}},
		},
		Issuers: []Issuer{
			{Issuer: testIssuer, Audience: testAudience, Keys: keys(t, s)},
			{Issuer: otherIssuer, Audience: testAudience, Keys: keys(t, other)},
		},
	})
	good := s.sign(t, claim(nil), nil)
	if _, err := d.login(t.Context(), bearer(good)); err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	// What HS256 would take for its secret, were it asked: the public key, as it is published.
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	published := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	confused := func(secret []byte) string {
		js, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, new(jose.SignerOptions).WithHeader("kid", "one"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := json.Marshal(claim(nil))
		signed, err := js.Sign(body)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := signed.CompactSerialize()
		return text
	}
	named := func(kid string) string { return signer{stranger.alg, stranger.key, kid}.sign(t, claim(nil), nil) }
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }

	for _, tt := range []struct {
		name, token string
		want        error // nil: any
	}{
		{"alg none", encode(`{"alg":"none","kid":"one"}`) + "." + payload + ".", nil},
		{"alg None, with the signature", encode(`{"alg":"None","kid":"one"}`) + "." + payload + "." + signature, nil},
		{"no alg", encode(`{"kid":"one"}`) + "." + payload + "." + signature, nil},
		{"HS256 with the public key in PEM as the secret", confused(published), nil},
		{"HS256 with the public key in DER as the secret", confused(der), nil},
		{"HS256 with an empty-looking secret", confused(make([]byte, 32)), nil},
		{"PS256 with the right key", signer{jose.PS256, s.key, "one"}.sign(t, claim(nil), nil), nil},
		{"RS512 with the right key", signer{jose.RS512, s.key, "one"}.sign(t, claim(nil), nil), nil},
		{"the algorithm of another key", encode(`{"alg":"EdDSA","kid":"one"}`) + "." + payload + "." + signature, ErrSignature},
		{"a stranger's key", stranger.sign(t, claim(nil), nil), ErrSignature},
		{"a stranger's key without a name", named(""), ErrSignature},
		{"a stranger's key in the header", stranger.sign(t, claim(nil), map[string]any{"jwk": jose.JSONWebKey{Key: stranger.key.Public()}}), ErrSignature},
		{"a stranger's address for keys", stranger.sign(t, claim(nil), map[string]any{"jku": "http://127.0.0.1/keys"}), ErrSignature},
		{"the name of a file as the key's", named("../../../../dev/null"), ErrUnknownKey},
		{"a query as the key's name", named("one' UNION SELECT 'secret"), ErrUnknownKey},
		{"the other issuer's key", other.sign(t, claim(nil), nil), ErrUnknownKey},
		{"the other issuer's key by the right name", signer{other.alg, other.key, "one"}.sign(t, claim(nil), nil), ErrSignature},
		{"the claims of another token", header + "." + encode(`{"iss":"`+testIssuer+`","aud":"culvert","sub":"root","groups":"admins","exp":99999999999}`) + "." + signature, ErrSignature},
		{"no signature", header + "." + payload + ".", nil},
		{"half a signature", good[:len(good)-100], ErrSignature},
		{"expired", s.sign(t, claim(map[string]any{"exp": at(-45 * time.Second)}), nil), ErrExpired},
		{"no end", s.sign(t, claim(map[string]any{"exp": nil}), nil), nil},
		{"an end that overflows", s.sign(t, claim(map[string]any{"exp": 1e300}), nil), nil},
		{"an end that is a text", s.sign(t, claim(map[string]any{"exp": "never"}), nil), nil},
		{"not yet good", s.sign(t, claim(map[string]any{"nbf": at(45 * time.Second)}), nil), ErrNotYet},
		{"issued in the future", s.sign(t, claim(map[string]any{"iat": at(45 * time.Second)}), nil), ErrNotYet},
		{"for another audience", s.sign(t, claim(map[string]any{"aud": "other"}), nil), ErrAudience},
		{"for a part of the audience", s.sign(t, claim(map[string]any{"aud": "culvert2"}), nil), ErrAudience},
		{"for nobody", s.sign(t, claim(map[string]any{"aud": nil}), nil), ErrAudience},
		{"of another issuer", s.sign(t, claim(map[string]any{"iss": "https://issuer.example.evil.example"}), nil), ErrUnknownIssuer},
		{"of the issuer with a slash", s.sign(t, claim(map[string]any{"iss": testIssuer + "/"}), nil), ErrUnknownIssuer},
		{"of no issuer", s.sign(t, claim(map[string]any{"iss": nil}), nil), ErrUnknownIssuer},
		{"of the issuer, signed by the other", other.sign(t, claim(map[string]any{"iss": testIssuer}), nil), ErrUnknownKey},
		{"the issuer twice", s.signBytes(t, []byte(`{"iss":"`+testIssuer+`","iss":"https://other.example","aud":"culvert","sub":"a","groups":"admins","exp":99999999999}`), nil), nil},
		{"claims by names in capitals", s.signBytes(t, []byte(`{"ISS":"`+testIssuer+`","AUD":"culvert","SUB":"a","groups":"admins","EXP":99999999999}`), nil), ErrUnknownIssuer},
		{"without a subject", s.sign(t, claim(map[string]any{"sub": nil}), nil), nil},
		{"with a long subject", s.sign(t, claim(map[string]any{"sub": strings.Repeat("a", maxSubject+1)}), nil), nil},
		{"of nobody here", s.sign(t, claim(map[string]any{"groups": []string{"staff"}}), nil), ErrNobodys},
		{"of two identities", s.sign(t, claim(map[string]any{"groups": nil, "mail": "both@example.com"}), nil), ErrAmbiguous},
		{"of another type", s.sign(t, claim(nil), map[string]any{"typ": "logout+jwt"}), nil},
		{"with a critical extension", s.sign(t, claim(nil), map[string]any{"crit": []string{"exp"}, "exp": 1}), nil},
		{"with a critical extension that the library knows", s.sign(t, claim(nil), map[string]any{"crit": []string{"b64"}, "b64": true}), nil},
		{"claims that are no object", s.signBytes(t, []byte(`"alice"`), nil), nil},
		{"claims that are a list", s.signBytes(t, []byte(`[1]`), nil), nil},
		{"garbage", encode(`{"alg":"RS256"}`) + ".!!!.???", nil},
		{"a header alone", encode(`{"alg":"RS256"}`) + "..", nil},
		{"huge", s.sign(t, claim(map[string]any{"pad": strings.Repeat("a", maxTokenLength)}), nil), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			login, err := d.login(t.Context(), bearer(tt.token))
			if login != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("login %+v, error %v, want %v", login, err, tt.want)
			}
			if errors.Is(err, ErrUnknownToken) {
				t.Error("it was taken for an ordinary token")
			}
			if strings.Contains(err.Error(), payload) || strings.Contains(err.Error(), signature) || len(err.Error()) > 1000 {
				t.Errorf("the error shows too much: %v", err)
			}
		})
	}
}

// TestOneKindOfToken checks that no text is tried as the other kind of token, whatever
// is configured.
func TestOneKindOfToken(t *testing.T) {
	s := newSigner(t, jose.EdDSA, "")
	expired := s.sign(t, claim(map[string]any{"exp": 1}), nil)
	const dotted = "two.dots.only-0123456789"
	identities := []Identity{{Name: "a", Tokens: []Token{{Sum: sha256.Sum256([]byte(expired))}, {Sum: sha256.Sum256([]byte(dotted))}}}}
	for name, issuers := range map[string][]Issuer{
		"with an issuer": {{Issuer: testIssuer, Audience: testAudience, Keys: keys(t, s)}},
		"without":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDirectory(t, DirectoryConfig{Identities: identities, Issuers: issuers})
			if login, err := d.login(t.Context(), bearer(expired)); err == nil {
				t.Errorf("an expired signed token is good as %s", login.Identity)
			}
			if _, err := d.login(t.Context(), bearer(dotted)); err != nil {
				t.Errorf("a token with dots: %v", err)
			}
		})
	}
}

func TestSignedTokenAfterReload(t *testing.T) {
	s, next := newSigner(t, jose.EdDSA, "one"), newSigner(t, jose.EdDSA, "two")
	ops := Identity{Name: "ops", Claims: []Claims{{"groups": {"admins"}}}}
	issuer := Issuer{Issuer: testIssuer, Audience: testAudience, Keys: keys(t, s)}
	config := func(change func(*Identity, *Issuer)) DirectoryConfig {
		ops, issuer := ops, issuer
		change(&ops, &issuer)
		return DirectoryConfig{Identities: []Identity{ops}, Issuers: []Issuer{issuer}}
	}
	for _, tt := range []struct {
		name  string
		after DirectoryConfig
		ends  bool
	}{
		{"nothing changed", config(func(*Identity, *Issuer) {}), false},
		{"a key more", config(func(_ *Identity, i *Issuer) { i.Keys = keys(t, next, s) }), false},
		{"keys not yet fetched", config(func(_ *Identity, i *Issuer) { i.Keys = KeySet(nil) }), false},
		{"the key is gone", config(func(_ *Identity, i *Issuer) { i.Keys = keys(t, next) }), true},
		{"another audience", config(func(_ *Identity, i *Issuer) { i.Audience = "other" }), true},
		{"another issuer", config(func(_ *Identity, i *Issuer) { i.Issuer = "https://other.example" }), true},
		{"other claims that match", config(func(id *Identity, _ *Issuer) { id.Claims = []Claims{{"sub": {"*"}}} }), false},
		{"other claims", config(func(id *Identity, _ *Issuer) { id.Claims = []Claims{{"groups": {"owners"}}} }), true},
		{"another identity", config(func(id *Identity, _ *Issuer) { id.Name = "staff" }), true},
		{"a second identity", DirectoryConfig{
			Identities: []Identity{ops, {Name: "alice", Claims: []Claims{{"sub": {"alice"}}}}}, Issuers: []Issuer{issuer},
		}, true},
		{"no identity", DirectoryConfig{Issuers: []Issuer{issuer}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			guard := NewGuard(directoryWith(t, ops, issuer))
			login, err := guard.Authenticate(t.Context(), bearer(s.sign(t, claim(nil), nil)))
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			defer guard.Watch(login, func(err error) { ended <- err })()
			guard.Use(mustDirectory(t, tt.after))
			select {
			case err := <-ended:
				if !tt.ends || !errors.Is(err, ErrRevoked) {
					t.Errorf("the login ended: %v", err)
				}
			default:
				if tt.ends {
					t.Error("the login goes on")
				}
			}
		})
	}
}

// Two long numbers are two, also where a float64 would have them one.
func TestNumbersOfClaims(t *testing.T) {
	s := newSigner(t, jose.EdDSA, "")
	d := directoryWith(t, Identity{Name: "alice", Claims: []Claims{{"account": {"9007199254740992"}}}},
		Issuer{Issuer: testIssuer, Audience: "culvert", Keys: keys(t, s)})
	for account, want := range map[json.Number]error{"9007199254740992": nil, "9007199254740993": ErrNobodys} {
		login, err := d.login(t.Context(), bearer(s.sign(t, claim(map[string]any{"account": account}), nil)))
		if !errors.Is(err, want) {
			t.Errorf("account %s: %v, %v, want %v", account, login, err, want)
		}
	}
}

func directoryWith(t *testing.T, id Identity, issuer Issuer) *Directory {
	t.Helper()
	return mustDirectory(t, DirectoryConfig{Identities: []Identity{id}, Issuers: []Issuer{issuer}})
}

func TestClaims(t *testing.T) {
	said, err := parseClaims([]byte(`{
		"sub": "alice", "groups": ["staff", "admins", 7, ["nested"]], "verified": true, "level": 3, "account": 9007199254740993,
		"empty": "", "none": [], "object": {"a": "b"}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		claims Claims
		want   bool
	}{
		{"a text", Claims{"sub": {"alice"}}, true},
		{"another text", Claims{"sub": {"Alice"}}, false},
		{"a part of a text", Claims{"sub": {"ali"}}, false},
		{"one of several", Claims{"sub": {"bob", "alice"}}, true},
		{"in a list", Claims{"groups": {"admins"}}, true},
		{"a number in a list", Claims{"groups": {"7"}}, true},
		{"not in a list", Claims{"groups": {"admin"}}, false},
		{"in a list in a list", Claims{"groups": {"nested"}}, false},
		{"a truth value", Claims{"verified": {"true"}}, true},
		{"the other truth value", Claims{"verified": {"false"}}, false},
		{"a number", Claims{"level": {"3"}}, true},
		{"a long number", Claims{"account": {"9007199254740993"}}, true},
		{"the next one", Claims{"account": {"9007199254740992"}}, false},
		{"any", Claims{"sub": {"*"}}, true},
		{"any of a list", Claims{"groups": {"*"}}, true},
		{"any of an empty text", Claims{"empty": {"*"}}, false},
		{"any of an empty list", Claims{"none": {"*"}}, false},
		{"any of what is not there", Claims{"email": {"*"}}, false},
		{"any of an object", Claims{"object": {"*"}}, false},
		{"all of them", Claims{"sub": {"alice"}, "groups": {"staff"}}, true},
		{"not all of them", Claims{"sub": {"alice"}, "groups": {"owners"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.claims.match(said); got != tt.want {
				t.Errorf("%v matches: %v", tt.claims, got)
			}
		})
	}
}

func TestSignedTokenConfiguration(t *testing.T) {
	k := keys(t, newSigner(t, jose.EdDSA, ""))
	one := Issuer{Issuer: testIssuer, Audience: testAudience, Keys: k}
	two := Issuer{Issuer: "https://other.example", Audience: testAudience, Keys: k}
	for _, tt := range []struct {
		name    string
		claims  []Claims
		issuers []Issuer
		want    string // "" for nothing wrong
	}{
		{"one issuer, not named", []Claims{{"sub": {"a"}}}, []Issuer{one}, ""},
		{"one issuer, named once", []Claims{{"sub": {"a"}}, {"iss": {testIssuer}, "sub": {"b"}}}, []Issuer{one}, ""},
		{"no issuer", []Claims{{"sub": {"a"}}}, nil, "identity id has claims, and no issuer of signed tokens is configured"},
		{"two issuers, not named", []Claims{{"sub": {"a"}}}, []Issuer{one, two}, "claims without iss"},
		{"any issuer", []Claims{{"iss": {"*"}, "sub": {"a"}}}, []Issuer{one, two}, "not a configured issuer"},
		{"unknown issuer", []Claims{{"iss": {"https://x.example"}}}, []Issuer{one}, "not a configured issuer"},
		{"both issuers", []Claims{{"iss": {testIssuer}}, {"iss": {two.Issuer}}}, []Issuer{one, two}, "make it two identities"},
		{"empty claims", []Claims{{}}, []Issuer{one}, "say nothing"},
		{"nothing wanted", []Claims{{"sub": nil}}, []Issuer{one}, `wants nothing of the claim "sub"`},
		{"no audience", nil, []Issuer{{Issuer: testIssuer, Keys: k}}, "no audience"},
		{"no name", nil, []Issuer{{Audience: testAudience, Keys: k}}, "no name"},
		{"no keys", nil, []Issuer{{Issuer: testIssuer, Audience: testAudience}}, "no keys"},
		{"twice", nil, []Issuer{one, one}, "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "id", Claims: tt.claims}}, Issuers: tt.issuers})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseKeys(t *testing.T) {
	ed, ec, rs := newSigner(t, jose.EdDSA, "ed"), newSigner(t, jose.ES256, "ec"), newSigner(t, jose.RS256, "rs")
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	jwk := func(key any, changes map[string]any) string {
		data, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: "k"})
		if err != nil {
			t.Fatal(err)
		}
		all := make(map[string]any)
		_ = json.Unmarshal(data, &all)
		maps.Copy(all, changes)
		data, _ = json.Marshal(all)
		return string(data)
	}
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	public := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	private, err := x509.MarshalPKCS8PrivateKey(ed.key)
	if err != nil {
		t.Fatal(err)
	}
	good := jwk(ed.key.Public(), nil)
	many := make([]string, maxKeys+1)
	for i := range many {
		many[i] = good
	}
	for _, tt := range []struct {
		name, text string
		keys       int
		want       string
	}{
		{"a set", set(good, jwk(ec.key.Public(), nil), jwk(rs.key.Public(), nil)), 3, ""},
		{"one key", " \n" + good, 1, ""},
		{"PEM", public(ed.key.Public()) + "and\n" + public(ec.key.Public()) + public(rs.key.Public()), 3, ""},
		{"for encryption", set(jwk(rs.key.Public(), map[string]any{"use": "enc"}), good), 1, ""},
		{"for another algorithm", set(jwk(rs.key.Public(), map[string]any{"alg": "PS256"}), good), 1, ""},
		{"for the algorithm", set(jwk(rs.key.Public(), map[string]any{"alg": "RS256"})), 1, ""},
		{"a secret is no key", set(jwk([]byte("0123456789abcdef0123456789abcdef"), nil)), 0, "no key for"},
		{"of an unknown kind", set(`{"kty":"XYZ"}`, good), 1, ""},
		{"on another curve", set(jwk(&p384.PublicKey, nil)), 0, "no key for"},
		{"on another curve, PEM", public(&p384.PublicKey), 0, "P-384"},
		{"small", set(jwk(&small.PublicKey, nil)), 0, "no key for"},
		{"small, PEM", public(&small.PublicKey), 0, "1024 bits"},
		{"private", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), 0, "belongs to the issuer alone"},
		{"private in a set", set(jwk(ed.key, nil)), 0, "no key for"},
		{"too many", set(many...), 0, "more than 32"},
		{"empty", "", 0, "no key for"},
		{"no JSON", "{", 0, "not a JSON Web Key Set"},
		{"something else", "-----BEGIN X-----\n-----END X-----\n", 0, "not a public key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(tt.text))
			if len(keys) != tt.keys || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d keys, error %v; want %d and %q", len(keys), err, tt.keys, tt.want)
			}
		})
	}
}

// FuzzSignedToken checks that only what the issuer has signed lets somebody in.
func FuzzSignedToken(f *testing.F) {
	// The same in every process that takes part.
	s := signer{jose.EdDSA, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "one"}
	d := admins(f, keys(f, s))
	good := s.sign(f, claim(map[string]any{"exp": int64(1) << 34, "iat": nil, "nbf": nil}), nil)
	if _, err := d.login(f.Context(), bearer(good)); err != nil {
		f.Fatal(err)
	}
	want := strings.Split(good, ".")[1]
	f.Add(good)
	f.Add(s.sign(f, claim(map[string]any{"groups": "staff"}), nil))
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("eyJhbGciOiJFZERTQSIsImNyaXQiOlsiYjY0Il0sImI2NCI6ZmFsc2V9.e30.AAAA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		login, err := d.login(context.Background(), bearer(text))
		if (login == nil) == (err == nil) {
			t.Fatalf("login %v, error %v", login, err)
		}
		if err == nil && strings.Split(text, ".")[1] != want {
			t.Errorf("%q is good", text)
		}
	})
}
