package main

import (
	"strings"
	"testing"

	"culvert/auth"
)

func TestPasswordCommand(t *testing.T) {
	for _, tt := range []struct {
		name, stdin string
		args        []string
		code        int
		stderr      string
	}{
		{"a line", "correct horse battery staple\n", nil, 0, ""},
		{"of Windows", "correct horse battery staple\r\n", nil, 0, ""},
		{"without an end", "correct horse battery staple", nil, 0, ""},
		{"short", "sesame\n", nil, 0, "it has 6 characters and can be guessed; use 12 or more\n"},
		{"empty", "\n", nil, 2, "culvert-server: password: the password is empty; type it, or give it on standard input in one line\n"},
		{"two lines", "sesame\nsesame\n", nil, 2, "culvert-server: password: the password has a control character in it, or is more than one line; type"},
		{"endless", strings.Repeat("x", 1<<20), nil, 2, "culvert-server: password: the password is longer than 1024 bytes; type"},
		{"as an argument", "", []string{"sesame"}, 2, "culvert-server: unexpected argument \"sesame\"; see password --help\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			args := append([]string{"culvert-server", "password"}, tt.args...)
			code := run(t.Context(), args, strings.NewReader(tt.stdin), &stdout, &stderr)
			if code != tt.code || !strings.HasPrefix(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("exit code %d, want %d; stderr %q, want %q", code, tt.code, &stderr, tt.stderr)
			}
			if code != 0 {
				if stdout.Len() > 0 {
					t.Errorf("stdout %q", &stdout)
				}
				return
			}
			text := strings.TrimSuffix(stdout.String(), "\n")
			p, err := auth.ParsePassword(text)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: []auth.Identity{{Name: "alice", Passwords: []auth.Password{p}}}})
			if err != nil {
				t.Fatal(err)
			}
			shown := auth.Presented{User: "alice", Password: strings.TrimRight(tt.stdin, "\r\n")}
			if _, err := auth.NewGuard(d).Authenticate(t.Context(), shown); err != nil {
				t.Error(err)
			}
		})
	}
}
