package auth

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestPublicKey(t *testing.T) {
	key := NewPrivateKey("alice's  laptop").Public()
	again, err := ParsePublicKey("  " + key.String() + " ")
	if err != nil || again != key || key.Comment != "alice's laptop" {
		t.Errorf("%v became %v, %v", key, again, err)
	}
	if f := key.Fingerprint(); !strings.HasPrefix(f, "SHA256:") || len(f) != 7+43 {
		t.Errorf("fingerprint %q", f)
	}
	without := PublicKey{Bytes: key.Bytes}
	if again, err := ParsePublicKey(without.String()); err != nil || again != without {
		t.Errorf("%v became %v, %v", without, again, err)
	}
	const good = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo="
	for text, want := range map[string]string{
		"":                            "does not begin with culvert-key",
		good:                          "does not begin with culvert-key",
		"ssh-ed25519 " + good:         "does not begin with culvert-key",
		"culvert-private-key " + good: "does not begin with culvert-key",
		"culvert-key":                 "nothing follows",
		"culvert-key " + good[:20]:    "is not a key",
		"culvert-key " + good + "AAA": "is not a key",
		"culvert-key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=": "all zeros",
	} {
		if _, err := ParsePublicKey(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestPrivateKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "key")
	key := NewPrivateKey("laptop")
	if err := key.Save(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if again, warnings, err := ReadPrivateKey(path); err != nil || len(warnings) > 0 || again.Public() != key.Public() || !again.ECDH().Equal(key.ECDH()) {
		t.Errorf("%v, %q, %v", again.Public(), warnings, err)
	}
	if err := NewPrivateKey("").Save(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("it was overwritten: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Fields(string(text[strings.Index(string(text), privateWord):]))[1]
	shown := fmt.Sprintf("%v %+v %s %#v %v", key, key, key, slog.AnyValue(key).Resolve(), []any{key})
	if strings.Contains(shown, secret) {
		t.Error("the key shows itself")
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, warnings, _ := ReadPrivateKey(path); len(warnings) != 1 || !strings.Contains(warnings[0], "chmod 600") {
			t.Errorf("warnings %q", warnings)
		}
	}
	for content, want := range map[string]string{
		"":                             "no key in it",
		"# only\n\n":                   "no key in it",
		string(text) + string(text):    ":4: a second key",
		key.Public().String():          ":1: does not begin with culvert-private-key",
		privateWord + " " + secret[:9]: ":1: what follows",
		strings.Repeat("#\n", maxKeyFile/2) + "#": "larger than",
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := ReadPrivateKey(file)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.50q: %v, want %q", content, err, want)
		}
	}
}

func TestKeyLogin(t *testing.T) {
	one, two, strange := NewPrivateKey("one").Public(), NewPrivateKey("two").Public(), NewPrivateKey("").Public()
	directory := func(keys ...PublicKey) *Directory {
		d, err := NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "alice", Keys: keys}, {Name: "bob"}}, Anybody: &Identity{}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	g := NewGuard(directory(one, two))
	login := func(k PublicKey) (*Login, error) {
		return g.Authenticate(t.Context(), Presented{Remote: netip.MustParseAddr("192.0.2.1"), Key: &k.Bytes})
	}
	l, err := login(one)
	if err != nil || l.Identity != "alice" || l.Credential != "key "+one.Fingerprint()+" one" {
		t.Fatalf("%+v, %v", l, err)
	}
	// An unknown key is not rescued by anything else.
	if _, err := login(strange); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), strange.Fingerprint()) {
		t.Error(err)
	}
	ended := make(chan error, 1)
	defer g.Watch(l, func(err error) { ended <- err })()
	g.Use(directory(two, one))
	select {
	case err := <-ended:
		t.Errorf("ended though it is there: %v", err)
	default:
	}
	g.Use(directory(two))
	if err := <-ended; !errors.Is(err, ErrRevoked) {
		t.Error(err)
	}
	_, err = NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "alice", Keys: []PublicKey{one}}, {Name: "bob", Keys: []PublicKey{one}}}})
	if err == nil || !strings.Contains(err.Error(), one.Fingerprint()+" of identity bob is also one of alice") {
		t.Error(err)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(NewPrivateKey("a b").Public().String())
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParsePublicKey(text)
		if err != nil {
			return
		}
		if again, err := ParsePublicKey(key.String()); err != nil || again != key {
			t.Errorf("%q: %v became %v, %v", text, key, again, err)
		}
	})
}
