package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// plain is texts without their places.
func plain(texts []Text) []string {
	var all []string
	for _, t := range texts {
		all = append(all, t.Value)
	}
	return all
}

func TestIdentities(t *testing.T) {
	src := sources(t, `
identities:
  alice:
    tokens:
      - {hash: "sha256:aa", label: laptop, expires: 2027-01-31}
      - hash: sha256:bb
        expires: 2027-01-31T12:00:00+01:00
      - sha256:cc
    passwords: $argon2id$v=19$m=65536,t=3,p=1$a$b
    keys: ["culvert-key AAAA laptop", 'culvert-key BBBB']
    certificates:
      - subject:CN=alice,O=Example
      - "dns:alice.example.com"
    claims:
      - {iss: "https://issuer.example", groups: [admins, "ops"]}
      - sub: alice
    dial:
      - deny 10.0.0.1:*
      - allow [2001:db8::/32]:443
    listen: allow localhost:8000-8999
    limits: {sessions: 4, upload: 10MiB, bytes-per-day: 4096}
    shared-limits: {sessions: 40, streams: 400, opens-per-second: 5, upload: 10MiB, download: 20MiB, bytes-per-day: 8192}
  "b.ob":
    allow: everything
issuers:
  - {issuer: https://issuer.example, audience: culvert, keys: keys.json}
`, nil, nil)
	s, warnings, err := LoadServer(src)
	if err != nil {
		t.Fatal(err)
	}
	path := src.Flags["config"][0]
	if want := []string{path + ":23: identity b.ob has no credential, so nobody can be it"}; !reflect.DeepEqual(warnings, want) {
		t.Errorf("warnings are %q, want %q", warnings, want)
	}
	if len(s.Identities) != 2 || s.Identities[0].Name.Value != "alice" || s.Identities[1].Name.Value != "b.ob" || !s.Identities[1].Everything {
		t.Fatalf("identities are %+v", s.Identities)
	}
	a := s.Identities[0]
	var tokens []string
	for _, token := range a.Tokens {
		tokens = append(tokens, strings.Join([]string{token.Hash.Value, token.Hash.Place(), token.Label, token.Expires.UTC().Format(time.RFC3339)}, " "))
	}
	for _, tt := range []struct {
		what      string
		got, want any
	}{
		{"tokens", tokens, []string{
			"sha256:aa " + path + ":5 laptop 2027-01-31T00:00:00Z",
			"sha256:bb " + path + ":6  2027-01-31T11:00:00Z",
			"sha256:cc " + path + ":8  0001-01-01T00:00:00Z",
		}},
		{"passwords", plain(a.Passwords), []string{"$argon2id$v=19$m=65536,t=3,p=1$a$b"}},
		{"keys", plain(a.Keys), []string{"culvert-key AAAA laptop", "culvert-key BBBB"}},
		{"certificates", plain(a.Certificates), []string{"subject:CN=alice,O=Example", "dns:alice.example.com"}},
		{"place", a.Certificates[1].Place(), path + ":13"},
		{"claims", []map[string][]string{a.Claims[0].Wanted, a.Claims[1].Wanted}, []map[string][]string{
			{"iss": {"https://issuer.example"}, "groups": {"admins", "ops"}}, {"sub": {"alice"}},
		}},
		{"dial", plain(a.Dial), []string{"deny 10.0.0.1:*", "allow [2001:db8::/32]:443"}},
		{"listen", plain(a.Listen), []string{"allow localhost:8000-8999"}},
		{"limits", a.Limits, Limits{Sessions: 4, Upload: 10 << 20, BytesPerDay: 4096}},
		{"shared limits", a.Shared, Limits{Sessions: 40, Streams: 400, OpensPerSecond: 5, Upload: 10 << 20, Download: 20 << 20, BytesPerDay: 8192}},
		{"issuers", []string{s.Issuers[0].Issuer.Value, s.Issuers[0].Audience.Value, s.Issuers[0].Keys.Value, s.Issuers[0].Keys.Place()},
			[]string{"https://issuer.example", "culvert", filepath.Join(filepath.Dir(path), "keys.json"), path + ":26"}},
		{"problem", a.Dial[1].Problem("is bad", "mend it").String(), path + ":19: identities.alice.dial: is bad; mend it"},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, tt.got, tt.want)
		}
	}
}

func TestIdentityProblems(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		want       []string // after the path
	}{
		{"not a mapping", "identities: alice", []string{":1: identities: is a text; give a mapping of names to identities"}},
		{"a list", "identities:\n  - alice", []string{":1: identities: is a list; give a mapping of names to identities"}},
		{"nothing", "identities:", []string{":1: identities: has no value; give a mapping of names to identities or remove the line"}},
		{"empty identity", "identities:\n  alice:", []string{":2: identities.alice: has no value; give its credentials and what it may do or remove the line"}},
		{"number", "identities:\n  123: {allow: everything}", []string{":2: identities.123: is not a text; put it in quotes"}},
		{"slash", "identities:\n  a/b: {allow: everything}", []string{":2: identities.a/b: is not a name for an identity; give it a name of visible"}},
		{"space", "identities:\n  a b: {allow: everything}", []string{":2: identities.a b: is not a name for an identity"}},
		{"control", "identities:\n  \"a\\n\\e[2J\": {allow: everything}", []string{`:2: identities.a\n\x1b[2J: is not a name for an identity`}},
		{"no name", "identities:\n  \"\": {allow: everything}", []string{":2: identities.: is an identity without a name"}},
		{"long name", "identities:\n  " + strings.Repeat("a", 129) + ": {allow: everything}", []string{"is a name of more than 128 characters"}},
		{"twice", "identities:\n  alice: {allow: everything}\n  alice: {allow: everything}", []string{":3: identities.alice: is given again, first in line 2; keep one of them"}},
		{"typo", "identities:\n  alice:\n    token: x\n    limts: {}\n    allow: everything", []string{
			":3: identities.alice.token: there is no such key; did you mean tokens?", ":4: identities.alice.limts: there is no such key; did you mean limits?",
		}},
		{"no such key", "identities:\n  alice:\n    shoe-size: 43", []string{
			":3: identities.alice.shoe-size: there is no such key; there are tokens, passwords, keys, certificates, claims, allow, dial, listen, limits, shared-limits",
		}},
		{"allow what", "identities:\n  alice: {allow: 10.0.0.0/8}", []string{`:2: identities.alice.allow: "10.0.0.0/8" is not a choice; give everything`}},
		{"allow and rules", "identities:\n  alice:\n    allow: everything\n    listen: deny *:*\n    dial: [deny *:*, deny *:*]", []string{
			":4: identities.alice.listen: is given together with allow: everything (FILE:3); give one of the two",
			":5: identities.alice.dial: is given together with allow: everything (FILE:3); give one of the two",
		}},
		{"tokens", "identities:\n  alice:\n    tokens:\n      - {label: x}\n      - {hash: 7}\n      - [a]\n      - {hash: a, expires: soon}\n      - {hash: a, lable: x}", []string{
			":4: identities.alice.tokens: has no hash; give the hash that culvert-server token new printed",
			":5: identities.alice.tokens.hash: is a number; put it in quotes",
			`:6: identities.alice.tokens: is a list; give {hash: "sha256:..."`,
			`:7: identities.alice.tokens.expires: "soon" is not a time; write it like 2027-01-31`,
			":8: identities.alice.tokens.lable: there is no such key; did you mean label?",
		}},
		{"token without quotes", "identities:\n  alice: {tokens: [sha256:aa]}", []string{":2: identities.alice.tokens: is a mapping; put it in quotes"}},
		{"token", "identities:\n  alice: {tokens: sha256:aa}", []string{":2: identities.alice.tokens: is a text; give a list of tokens, each with a dash before it"}},
		{"rules", "identities:\n  alice:\n    dial: {allow: x}\n    listen: [22]", []string{
			":3: identities.alice.dial: is a mapping; give a text or a list of texts, in quotes where it has a colon in it", ":4: identities.alice.listen: is a number; put it in quotes",
		}},
		{"empty rule", "identities:\n  alice:\n    dial: ['']", []string{":3: identities.alice.dial: is empty"}},
		{"limits", "identities:\n  alice:\n    limits: {streams: 0, upload: fast, sessions: many, uploads: 1}", []string{
			":3: identities.alice.limits.streams: 0 is out of range; give 1 to 1048576",
			`:3: identities.alice.limits.upload: "fast" is not a size`,
			":3: identities.alice.limits.sessions: is a text; give a whole number",
			":3: identities.alice.limits.uploads: there is no such key; did you mean upload?",
		}},
		{"memory of all", "identities:\n  alice:\n    shared-limits: {memory: 1MiB}", []string{":3: identities.alice.shared-limits.memory: there is no such key"}},
		{"claims", "identities:\n  alice:\n    claims: [{admin: true}, groups]", []string{
			":3: identities.alice.claims.admin: is a yes or no; give a text or a list of texts", ":3: identities.alice.claims: is a text; give a mapping of claims",
		}},
		{"alias", "identities:\n  alice: &a {allow: everything}\n  bob: *a", []string{
			":2: identities.alice: is written with a YAML feature that is not supported", ":3: identities.bob: is a YAML alias, which is not supported",
		}},
		{"issuers", "issuers:\n  - {issuer: x, audience: y}\n  - {issuer: x, audience: y, keys: z, key: z}\n  - x\nidentities: {a: {allow: everything}}", []string{
			":2: issuers: has no keys; give issuer, audience and keys", ":3: issuers.key: there is no such key; did you mean keys?",
			":4: issuers: is a text; give {issuer: URL, audience: TEXT, keys: FILE-or-URL}",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, tt.file, nil, nil)
			_, _, err := LoadServer(src)
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.ReplaceAll(err.Error(), src.Flags["config"][0], "FILE")
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("missing: %s", want)
				}
			}
			if n := strings.Count(got, "\n") + 1; n != len(tt.want) || t.Failed() {
				t.Errorf("got %d lines, want %d:\n%s", n, len(tt.want), got)
			}
		})
	}
}

func TestIdentitiesDir(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flags := map[string][]string{"identities-dir": {dir}}
	one := put("one.yaml", "# people\nalice: {tokens: ['sha256:aa'], allow: everything}\nbob: {tokens: ['sha256:bb'], allow: everything}\n")
	put("two.yml", "carol: {tokens: ['sha256:cc'], dial: deny *:*}\n")
	put("empty.yaml", "# nobody\n")
	put("one.yaml~", "dave: {}")
	put(".three.yaml", "dave: {}")
	if err := os.Mkdir(filepath.Join(dir, "four.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, warnings, err := LoadServer(sources(t, "identities:\n  erin: {tokens: ['sha256:ee'], allow: everything}", nil, flags))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	var names []string
	for _, id := range s.Identities {
		names = append(names, id.Name.Value)
	}
	if want := []string{"erin", "alice", "bob", "carol"}; !reflect.DeepEqual(names, want) {
		t.Errorf("identities are %q, want %q", names, want)
	}

	five := put("zzz.yaml", "alice: {allow: everything}\nfrank: {allow: nothing}\n")
	bad := put("bad.yaml", "alice:\n  - x: [\n")
	_, _, err = LoadServer(Sources{Flags: flags})
	for _, want := range []string{
		bad + ":", ": is not YAML", five + ":1: alice: is there again, first in " + one + ":2; keep one of them",
		five + `:2: frank.allow: "nothing" is not a choice; give everything`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s in\n%v", want, err)
		}
	}
	if err == nil || strings.Contains(err.Error(), "no credential is configured") {
		t.Errorf("what may have been in a file is said to be missing:\n%v", err)
	}

	_, _, err = LoadServer(Sources{Flags: map[string][]string{"identities-dir": {one}}})
	if err == nil || !strings.HasPrefix(err.Error(), "--identities-dir: "+one+" cannot be read: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a file for a directory: %v", err)
	}
	_, _, err = LoadServer(sources(t, "identities: {erin: {tokens: ['sha256:ee'], allow: everything}}\ninsecure-no-auth: true", nil, nil))
	if err == nil || !strings.Contains(err.Error(), "insecure-no-auth: lets everybody in although there is a credential (") {
		t.Errorf("identities and nobody is asked: %v", err)
	}
}

// FuzzIdentities looks for panics, for problems that are not one line each and for
// names that a log cannot take.
func FuzzIdentities(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("examples", "server.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "#identities:\n")
	f.Add([]byte(strings.ReplaceAll(example, "\n#", "\n")))
	for _, s := range []string{"a: {tokens: [{hash: a, expires: 2027-01-31}]}", "a: {claims: [{a: [b]}]}", "a: &a {limits: {upload: 1KiB}}\nb: *a", "? {a: b}\n: c", "a: {tokens: [{}]}", "\"a\\n\": {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		identities, problems := decodeIdentities("f", data)
		for _, p := range problems {
			if s := p.String(); strings.ContainsAny(s, "\n\r") || p.What == "" || p.File == "" {
				t.Errorf("problem %q", s)
			}
		}
		for _, id := range identities {
			if wrongName(id.Name.Value) != "" || id.Name.Place() == "" {
				t.Errorf("name %q at %q", id.Name.Value, id.Name.Place())
			}
			for _, token := range id.Tokens {
				if token.Hash.Value == "" {
					t.Error("a token without a hash")
				}
			}
		}
	})
}
