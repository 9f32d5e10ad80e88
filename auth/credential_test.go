package auth

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

func TestNewToken(t *testing.T) {
	text, token := NewToken()
	if !strings.HasPrefix(text, "culvert_") || len(text) != len("culvert_")+43 {
		t.Errorf("token %q", text)
	}
	if other, _ := NewToken(); other == text {
		t.Error("the same token twice")
	}
	sum, err := ParseTokenHash(token.Hash())
	if err != nil || sum != sha256.Sum256([]byte(text)) || sum != token.Sum {
		t.Errorf("hash %q, %v", token.Hash(), err)
	}
	if err := (tokenLine{"it", text}).check(); err != nil {
		t.Error(err)
	}
}

func TestParseTokenHashErrors(t *testing.T) {
	digits := strings.Repeat("0f", 32)
	for _, text := range []string{"", "sha256:", digits, "sha256:" + digits[1:], "sha256:" + digits + "0", "sha256:" + digits + "00",
		"sha256:" + digits[2:] + "0g", "SHA256:" + digits, "sha256: " + digits, "sha1:" + digits, "sha256:" + digits + " label"} {
		_, err := ParseTokenHash(text)
		if err == nil || !strings.Contains(err.Error(), "write sha256:") {
			t.Errorf("%q: %v", text, err)
			continue
		}
		checkSilent(t, err.Error(), strings.TrimPrefix(text, "sha256:"))
	}
}

// A server's token file may have no secret in it.
func TestHashesInTokenFile(t *testing.T) {
	text, token := NewToken()
	path := writeTokens(t, 0o644, "# hashes\n"+token.Hash()+"  the laptop\n"+token.Hash()[:7]+strings.Repeat("00", 32)+"\n")
	identities, warnings, err := ReadTokens(Everything(), path)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	d := directoryOf(t, identities...)
	login, err := d.login(t.Context(), Presented{Bearer: text})
	if err != nil || login.Identity != "token-1" || login.Credential != "token the laptop" {
		t.Errorf("%+v, %v", login, err)
	}
	if _, err := d.login(t.Context(), Presented{Bearer: token.Hash()}); !errors.Is(err, ErrUnknownToken) {
		t.Errorf("the hash itself: %v", err)
	}
	if _, _, err := ReadToken(path); err == nil || !strings.Contains(err.Error(), "line 2 is only its hash") {
		t.Errorf("as a client's token: %v", err)
	}
	path = writeTokens(t, 0o600, alice+"\nsha256:123\n")
	if _, _, err := ReadTokens(Everything(), path); err == nil || !strings.Contains(err.Error(), "the token in line 2 is not the hash") {
		t.Errorf("a malformed hash: %v", err)
	}
	path = writeTokens(t, 0o600, text+"\n"+token.Hash()+"\n")
	if _, _, err := ReadTokens(Everything(), path); err == nil || !strings.Contains(err.Error(), "line 2 is the same") {
		t.Errorf("a token and its hash: %v", err)
	}
}

func directoryOf(t *testing.T, identities ...Identity) *Directory {
	t.Helper()
	d, err := NewDirectory(DirectoryConfig{Identities: identities})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tokenUntil is a token that ends.
func tokenUntil(text string, end time.Time) Token {
	return Token{Sum: sha256.Sum256([]byte(text)), Expires: end}
}

func TestExpiry(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		end := time.Now().Add(time.Minute)
		g := NewGuard(directoryOf(t, Identity{Name: "alice", Tokens: []Token{tokenUntil(alice, end), tokenUntil(bob, time.Time{})}}))
		login, err := g.Authenticate(t.Context(), Presented{Bearer: alice})
		if err != nil || !login.Until.Equal(end) {
			t.Fatalf("%+v, %v", login, err)
		}
		ended := make(chan error, 1)
		stop := g.Watch(login, func(err error) { ended <- err })
		defer stop()
		time.Sleep(time.Minute - 1)
		synctest.Wait()
		if _, err := g.Authenticate(t.Context(), Presented{Bearer: alice}); err != nil || len(ended) != 0 {
			t.Errorf("before its end: %v, and %d ended", err, len(ended))
		}
		time.Sleep(time.Nanosecond)
		if err := <-ended; !errors.Is(err, ErrExpired) {
			t.Errorf("ended: %v", err)
		}
		if _, err := g.Authenticate(t.Context(), Presented{Bearer: alice}); !errors.Is(err, ErrExpired) {
			t.Errorf("at its end: %v", err)
		}
		if _, err := g.Authenticate(t.Context(), Presented{Bearer: bob}); err != nil {
			t.Errorf("the other token: %v", err)
		}
	})
}

// What another directory does to a login by token.
func TestTokenInLaterDirectory(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	identity := func(name string, tokens ...Token) Identity { return Identity{Name: name, Tokens: tokens} }
	for _, tt := range []struct {
		name  string
		later Identity
		ends  bool
	}{
		{"the same", identity("alice", tokenUntil(alice, at(time.Hour))), false},
		{"beside another", identity("alice", tokenUntil(bob, time.Time{}), tokenUntil(alice, at(time.Hour))), false},
		{"longer", identity("alice", tokenUntil(alice, at(2*time.Hour))), false},
		{"for ever", identity("alice", tokenUntil(alice, time.Time{})), false},
		{"shorter", identity("alice", tokenUntil(alice, at(time.Minute))), true},
		{"gone", identity("alice", tokenUntil(bob, time.Time{})), true},
		{"another's", identity("bob", tokenUntil(alice, at(time.Hour))), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := NewGuard(directoryOf(t, identity("alice", tokenUntil(alice, at(time.Hour)))))
			login, err := g.Authenticate(t.Context(), Presented{Bearer: alice})
			if err != nil {
				t.Fatal(err)
			}
			var ended error
			defer g.Watch(login, func(err error) { ended = err })()
			g.Use(directoryOf(t, tt.later))
			if (ended != nil) != tt.ends || tt.ends && !errors.Is(ended, ErrRevoked) {
				t.Errorf("ended: %v", ended)
			}
		})
	}
}

// What is wrong is not made good by something else, nor by a server that is open.
func TestNotRescued(t *testing.T) {
	d, err := NewDirectory(DirectoryConfig{
		Identities: []Identity{{Name: "alice", Tokens: []Token{tokenUntil(alice, time.Time{})}}}, Anybody: &Identity{},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := NewGuard(d)
	for _, tt := range []struct {
		p    Presented
		want error
	}{
		{Presented{}, nil},
		{Presented{Bearer: alice}, nil},
		{Presented{Bearer: bob}, ErrUnknownToken},
		{Presented{User: "alice", Password: alice}, ErrPassword},
		{Presented{Garbled: true}, ErrGarbled},
	} {
		if _, err := g.Authenticate(t.Context(), tt.p); !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v, want %v", tt.p, err, tt.want)
		}
	}
}
