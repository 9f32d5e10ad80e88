package auth

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const (
	alice = "alice-0123456789abcdef"
	bob   = "bob-0123456789abcdef"
	carol = "carol-0123456789abcdef"
)

func TestAuthenticate(t *testing.T) {
	tokens, warnings, err := NewTokens(Everything(), alice, bob, carol)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("NewTokens: %v, warnings %q", err, warnings)
	}
	for token, want := range map[string]string{alice: "token-1", bob: "token-2", carol: "token-3"} {
		if got, err := loginOf(tokens, token); err != nil || got != want {
			t.Errorf("Authenticate(%q) = %q, %v, want %q", token, got, err, want)
		}
	}
	for _, token := range []string{"alice", alice + " ", strings.ToUpper(alice), alice + bob} {
		if got, err := loginOf(tokens, token); !errors.Is(err, ErrUnknownToken) || got != "" {
			t.Errorf("Authenticate(%q) = %q, %v, want ErrUnknownToken", token, got, err)
		}
	}
}

func TestNewTokensErrors(t *testing.T) {
	tests := []struct {
		name   string
		tokens []string
		want   string
	}{
		{"none", nil, "no token"},
		{"empty", []string{""}, "token 1 is empty"},
		{"space", []string{alice, "two words, one token"}, "token 2 has a character"},
		{"control", []string{"line\nbreak-0123456789"}, "token 1 has a character"},
		{"not ASCII", []string{"schlüssel-0123456789"}, "token 1 has a character"},
		{"twice", []string{alice, bob, alice}, "token 3 is the same as token 1"},
		{"signed", []string{alice, "eyJhbGciOiJub25lIn0.e30."}, "token 2 is a signed token (JWT)"},
		{"long", []string{strings.Repeat("x", maxTokenLength+1)}, "token 1 is longer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := NewTokens(Everything(), tt.tokens...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			checkSilent(t, err.Error(), tt.tokens...)
		})
	}
}

func TestReadTokens(t *testing.T) {
	path := writeTokens(t, 0o600, "\ufeff# the first\n\n  "+alice+"  \r\n\t# indented comment\n"+bob)
	tokens, warnings, err := ReadTokens(Everything(), path)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("ReadTokens: %v, warnings %q", err, warnings)
	}
	for token, want := range map[string]string{alice: "token-1", bob: "token-2"} {
		if got, err := loginOf(tokens, token); err != nil || got != want {
			t.Errorf("Authenticate(%q) = %q, %v, want %q", token, got, err, want)
		}
	}
	token, warnings, err := ReadToken(path)
	if err != nil || token != alice {
		t.Fatalf("ReadToken = %q, %v, want the first", token, err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "holds 2 tokens") {
		t.Errorf("warnings %q, want one about the second token", warnings)
	}
}

func TestReadTokensErrors(t *testing.T) {
	tests := []struct {
		name, content, want string
	}{
		{"empty", "", "no token in it"},
		{"only comments", "# nothing\n\n#here", "no token in it"},
		{"bad line", "# one\n" + alice + "\nbad token here ok\n", "the token in line 3 has a character"},
		{"twice", alice + "\n" + alice + "\n", "line 2 is the same as the token in line 1"},
		{"huge", strings.Repeat("#\n", maxTokenFile/2+1), "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := writeTokens(t, 0o600, tt.content)
			_, _, err := ReadTokens(Everything(), path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v, want one with the path and %q", err, tt.want)
			}
			checkSilent(t, err.Error(), alice, "bad token here ok")
		})
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, _, err := ReadTokens(Everything(), missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := ReadToken(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	if runtime.GOOS != "windows" {
		for mode, can := range map[os.FileMode]string{
			0o600: "", 0o400: "", 0o640: "read", 0o604: "read", 0o644: "read", 0o620: "changed", 0o602: "changed", 0o666: "read and changed",
		} {
			warned := can != ""
			path := writeTokens(t, mode, alice)
			_, warnings, err := ReadTokens(Everything(), path)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(warnings) == 1 && strings.Contains(warnings[0], "can be "+can+" by others"); got != warned {
				t.Errorf("mode %o: warnings %q, want one: %v", mode, warnings, warned)
			}
			if got := len(Exposed(path, "", path+".missing")) == 1; got != warned {
				t.Errorf("mode %o: Exposed says %v, want %v", mode, got, warned)
			}
		}
	}
	path := writeTokens(t, 0o600, alice+"\nshort\n")
	_, warnings, err := ReadTokens(Everything(), path)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "line 2 has 5 characters") {
		t.Errorf("warnings %q, %v, want one about line 2", warnings, err)
	}
	checkSilent(t, strings.Join(warnings, " "), alice, "short")
}

// checkSilent fails when a message shows a secret.
func checkSilent(t *testing.T, message string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		if secret != "" && strings.Contains(message, secret) {
			t.Errorf("%q shows the secret %q", message, secret)
		}
	}
}

func writeTokens(t *testing.T, mode os.FileMode, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token-list")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return path
}

func FuzzParseTokenFile(f *testing.F) {
	f.Add([]byte("# comment\n" + alice + "\r\n\n" + bob))
	f.Add([]byte("\ufeff\x00\xff\n#"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := parseTokenFile(data)
		tokens, _, err := newTokens(Everything(), lines)
		if err != nil {
			return
		}
		for _, line := range lines {
			if _, err := loginOf(tokens, line.token); err != nil {
				t.Errorf("%s is not accepted", line.where)
			}
		}
	})
}

// loginOf is the name of the identity that a token belongs to.
func loginOf(identities []Identity, token string) (string, error) {
	d, err := NewDirectory(DirectoryConfig{Identities: identities})
	if err != nil {
		return "", err
	}
	login, err := d.login(context.Background(), Presented{Bearer: token})
	if err != nil {
		return "", err
	}
	return login.Identity, nil
}

// What a client presents may be an issuer's, which a server cannot take for a token of
// its own.
func TestCheckToken(t *testing.T) {
	signed := "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"
	if warnings, err := CheckToken(signed); err != nil || len(warnings) > 0 {
		t.Errorf("a signed token: %q, %v", warnings, err)
	}
	if _, _, err := NewTokens(Everything(), signed); err == nil {
		t.Error("a server takes a signed token for one of its own")
	}
	if _, err := CheckToken("two words"); err == nil {
		t.Error("two words are a token")
	}
	if warnings, err := CheckToken("short"); err != nil || len(warnings) != 1 {
		t.Errorf("a short token: %q, %v", warnings, err)
	}
}
