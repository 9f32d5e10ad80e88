package config

import (
	"strings"
	"testing"
)

// TestPasswords has every way to give a user's password, alone and against others.
func TestPasswords(t *testing.T) {
	type vars = map[string]string
	type flags = map[string][]string
	tests := []struct {
		name             string
		file             string
		env              vars
		flags            flags
		user, pass, from string // of the password: itself or the file
		token            string
		warning, problem string
	}{
		{name: "file: password", file: "user: alice\npassword: sesame\n", user: "alice", pass: "sesame"},
		{name: "file: password-file", file: "user: alice\npassword-file: f\n", user: "alice", from: "f"},
		{name: "env: password", env: vars{"CULVERT_USER": "alice", "CULVERT_PASSWORD": "sesame"}, user: "alice", pass: "sesame"},
		{name: "env: password-file", env: vars{"CULVERT_USER": "alice", "CULVERT_PASSWORD_FILE": "f"}, user: "alice", from: "f"},
		{name: "flag: password", flags: flags{"user": {"alice"}, "password": {"sesame"}}, user: "alice", pass: "sesame",
			warning: "the password is on the command line, where everybody on this machine can see it (ps); use --password-file or CULVERT_PASSWORD"},
		{name: "flag: password-file", flags: flags{"user": {"alice"}, "password-file": {"f"}}, user: "alice", from: "f"},
		{name: "flag over env", env: vars{"CULVERT_PASSWORD": "sesame"}, flags: flags{"user": {"alice"}, "password-file": {"f"}}, user: "alice", from: "f"},
		{name: "a user over a weaker token", env: vars{"CULVERT_TOKEN": "abc"}, flags: flags{"user": {"alice"}, "password-file": {"f"}}, user: "alice", from: "f"},
		{name: "a token over a weaker user", file: "user: alice\npassword-file: f\n", env: vars{"CULVERT_TOKEN": "abc"}, token: "abc", from: "f"},
		{name: "both in one place", flags: flags{"user": {"alice"}, "password-file": {"f"}, "token-file": {"g"}}, problem: "--user: is given together with --token-file (--token-file); give one of the two"},
		{name: "two passwords", flags: flags{"user": {"alice"}, "password-file": {"f"}, "password": {"sesame"}}, problem: "is given together with --password-file"},
		{name: "no password", flags: flags{"user": {"alice"}}, problem: "--user: needs a password; give --password-file FILE or CULVERT_PASSWORD too"},
		{name: "no user", flags: flags{"password-file": {"f"}}, problem: "--password-file: needs a user; give --user NAME too"},
		{name: "no user, a token", flags: flags{"password-file": {"f"}, "token-file": {"g"}}, problem: "--password-file: needs a user; give --user NAME too"},
		{name: "a colon", flags: flags{"user": {"a:b"}, "password-file": {"f"}}, problem: "--user: has a colon in it, which a user's name cannot have; give the password with --password-file or CULVERT_PASSWORD"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, tt.file, tt.env, tt.flags)
			src.Flags["server"], src.Flags["local"] = []string{"wss://h"}, []string{"1:h:1"}
			c, warnings, err := LoadClient(src)
			if tt.problem != "" {
				if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), tt.problem) {
					t.Errorf("%v, want %q", err, tt.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.User != tt.user || c.Password.Reveal() != tt.pass || nameOf(c.PasswordFile) != tt.from || c.Token.Reveal() != tt.token {
				t.Errorf("user %q, password %q from %q, token %q", c.User, c.Password.Reveal(), c.PasswordFile, c.Token.Reveal())
			}
			if all := strings.Join(warnings, "\n"); all != tt.warning {
				t.Errorf("warnings %q, want %q", all, tt.warning)
			}
			if inFile := strings.Contains(tt.file, "password: "); inFile != (c.SecretFile != "") {
				t.Errorf("SecretFile is %q", c.SecretFile)
			}
		})
	}
}
