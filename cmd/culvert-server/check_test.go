package main

import (
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/auth"
	"culvert/config"
)

const hash = "sha256:9b1d5e8f3a7c2046d0e4b6a8c1f35792846ad0b3c5e7f9123d6b8a0c4e2f7591"

const example = `identities:
  alice:
    tokens: [{hash: "` + hash + `", label: laptop}]
    dial:
      - deny 10.0.0.1:*
      - allow 10.0.0.0/8:22,443
      - allow localhost:80
    listen: allow localhost:8000-8999
  bob:
    passwords: ["$argon2id$v=19$m=65536,t=3,p=1$Y3VsdmVydC1zYWx0$Ik1+3Vqz0rYwz6rVYxU6QeYt0hO0m9CqvI6qg4l2b5o"]
    allow: everything
`

// command runs the program with FILE in arguments and output for the path of a file
// with this content.
func command(t *testing.T, content string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"culvert-server"}
	for _, arg := range args {
		all = append(all, strings.ReplaceAll(arg, "FILE", file))
	}
	var out, err strings.Builder
	code = run(t.Context(), all, nil, &out, &err)
	return strings.ReplaceAll(out.String(), file, "FILE"), strings.ReplaceAll(err.String(), file, "FILE"), code
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name, file     string
		args           []string
		code           int
		stdout, stderr string // stderr: the lines' beginnings
	}{
		{"good", example, nil, 0, "ok: 2 identities, 4 rules, 1 of them allowed everything\n", ""},
		{"a token file", "token-file: " + write(t, secret), nil, 0, "ok: 0 identities, 0 rules, and the tokens in ", ""},
		{"everybody", "insecure-no-auth: true", nil, 0, "ok: 0 identities, 0 rules, and everybody else\n", "time="},
		{"all at once", strings.NewReplacer("10.0.0.0/8:22,443", "10.0.0.0/8", "laptop", "[]", "v=19", "v=18").Replace(example) +
			"  carol: {tokens: [sesame, '" + hash + "'], allow: everything}\n  dave: {tokens: ['" + hash + "', \"" + hash + "\"], allow: everything}\ntls-cert: /nowhere\ntls-key: /nowhere\ngrace: soon\n",
			[]string{"--max-sessions", "0"}, 2, "", strings.Join([]string{
				"culvert-server: FILE:3: identities.alice.tokens.label: is a list",
				"culvert-server: FILE:6: identities.alice.dial: ",
				"culvert-server: FILE:10: identities.bob.passwords: not of version 19 of argon2",
				"culvert-server: FILE:12: identities.carol.tokens: not the hash of a token; write sha256: and 64 hexadecimal digits",
				"culvert-server: FILE:12: identities.carol.tokens: is the hash of the same token as in FILE:3; keep one of them",
				"culvert-server: FILE:13: identities.dave.tokens: is the hash of the same token as in FILE:3; keep one of them",
				"culvert-server: FILE:13: identities.dave.tokens: is the hash of the same token as in FILE:3; keep one of them",
				`culvert-server: FILE:16: grace: "soon" is not a duration`,
				"culvert-server: --max-sessions: 0 is out of range",
				"culvert-server: --tls-cert: open /nowhere: no such file",
				"culvert-server: --tls-key: open /nowhere: no such file",
			}, "\n") + "\n"},
		{"a reserved name", "identities: {token-1: {tokens: ['" + hash + "'], allow: everything}}\ntoken-file: " + write(t, secret), nil, 2, "",
			"culvert-server: FILE: identity token-1 is there twice\n"},
		{"an expired token", `identities: {a: {tokens: [{hash: "` + hash + `", expires: 2020-01-01}], allow: everything}}`, nil, 0,
			"ok: 1 identities", "time="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := command(t, tt.file, append([]string{"check", "--config", "FILE"}, tt.args...)...)
			if code != tt.code || !strings.HasPrefix(stdout, tt.stdout) || (stdout == "") != (tt.stdout == "") {
				t.Errorf("exit code %d, want %d; %q, want %q", code, tt.code, stdout, tt.stdout)
			}
			got, want := strings.SplitAfter(stderr, "\n"), strings.Split(tt.stderr, "\n")
			for i := range min(len(got), len(want)) {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("says %q, want %q", got[i], want[i])
				}
			}
			if n := strings.Count(tt.stderr, "\n"); n > 0 && n != len(got)-1 {
				t.Errorf("%d lines, want %d:\n%s", len(got)-1, n, stderr)
			}
			if strings.Contains(stderr+stdout, "sesame") || strings.Contains(stderr, hash[7:]) || strings.Contains(stderr, "Ik1+") {
				t.Error("a secret is shown")
			}
		})
	}
}

func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"--identity alice dial 10.0.0.5:22", 0, "dial 10.0.0.5:22: allowed: allow 10.0.0.0/8:22,443 (FILE:6)\n", ""},
		{"--identity alice dial 10.0.0.1:22", 3, "dial 10.0.0.1:22: denied: deny 10.0.0.1:* (FILE:5)\n", "dial 10.0.0.1:22: denied by policy\n"},
		{"--identity alice dial [::ffff:10.0.0.1]:22", 3, "dial 10.0.0.1:22: denied: deny 10.0.0.1:* (FILE:5)\n", "dial [::ffff:10.0.0.1]:22: denied by policy\n"},
		{"--identity alice dial 192.0.2.1:22", 3, "dial 192.0.2.1:22: denied: no rule allows it\n", "denied by policy\n"},
		{"--identity bob dial 0xa9fea9fe:80", 3, "dial 169.254.169.254:80: denied: a link-local address", "denied by policy\n"},
		{"--identity bob dial 127.0.0.1:8080", 3, "dial 127.0.0.1:8080: denied: the server's own listener", "denied by policy\n"},
		{"--identity bob dial 192.0.2.1:22", 0, "dial 192.0.2.1:22: allowed: allow *:*\n", ""},
		{"--identity alice listen localhost:8081", 0, "listen 127.0.0.1:8081: allowed: allow localhost:8000-8999 (FILE:8)\n", ""},
		{"--identity alice listen [::1]:8080", 3, "listen [::1]:8080: denied: a port of the server's own, which no rule names\n", "denied by policy\n"},
		{"--fallback http://localhost:8090 --identity alice listen 127.0.0.1:8090", 3, "listen 127.0.0.1:8090: denied: a port of the server's own", "denied by policy\n"},
		{"--fallback http://192.0.2.1:8090 --identity alice listen 127.0.0.1:8090", 0, "listen 127.0.0.1:8090: allowed: ", ""},
		{"--identity alice listen *:8081", 3, "listen [::]:8081: denied: no rule allows it\n", "denied by policy\n"},
		{"--identity alcie dial 192.0.2.1:22", 2, "", "--identity: there is no identity \"alcie\"; did you mean alice?\n"},
		{"dial 192.0.2.1:22", 2, "", "--identity: is not set; say who asks\n"},
		{"--identity alice", 2, "", "explain: needs to know what is to be explained; write explain --identity NAME dial HOST:PORT"},
		{"--identity alice bind a:1", 2, "", "explain: needs to know"},
		{"dial 192.0.2.1:22 --identity alice", 2, "", "explain: needs to know"},
		{"--identity alice dial 192.0.2.1", 1, "", "missing port"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			stdout, stderr, code := command(t, example, append([]string{"explain", "--config", "FILE"}, strings.Fields(tt.args)...)...)
			if code != tt.code || !strings.HasPrefix(stdout, tt.stdout) || (stdout == "") != (tt.stdout == "") {
				t.Errorf("exit code %d, want %d; %q, want %q", code, tt.code, stdout, tt.stdout)
			}
			if !strings.Contains(stderr, tt.stderr) || (stderr == "") != (tt.stderr == "") || strings.Count(stderr, "\n") > 1 {
				t.Errorf("says %q, want %q", stderr, tt.stderr)
			}
		})
	}
	// A name may have several addresses; one line is for each.
	stdout, _, code := command(t, example, "explain", "--config", "FILE", "--identity", "alice", "dial", "localhost:80")
	if lines := strings.Split(strings.TrimSpace(stdout), "\n"); code != 0 || len(lines) == 0 {
		t.Errorf("exit code %d, %q", code, stdout)
	} else {
		for _, line := range lines {
			if !strings.HasSuffix(line, ":80: allowed: allow localhost:80 (FILE:7)") {
				t.Errorf("says %q", line)
			}
		}
	}
}

// TestTokenNew takes the token that is made for the hash that is printed.
func TestTokenNew(t *testing.T) {
	stdout, stderr, code := command(t, "", "token", "new", "--label", `a "label" of: #it`, "--expires", "30d")
	token := strings.TrimSpace(stdout)
	if code != 0 || !strings.HasPrefix(token, "culvert_") || strings.Count(stdout, "\n") != 1 || strings.Contains(stderr, token) {
		t.Fatalf("exit code %d, %q, %q", code, stdout, stderr)
	}
	_, line, _ := strings.Cut(stderr, "\n")
	config := "identities:\n  alice:\n    tokens:\n    " + line + "    allow: everything\n"
	if stdout, stderr, code := command(t, config, "check", "--config", "FILE"); code != 0 || stderr != "" {
		t.Errorf("exit code %d, %q, %q with\n%s", code, stdout, stderr, config)
	}
	// The same token in a token file has the same hash.
	if _, stderr, code := command(t, config+"token-file: "+write(t, stdout), "check", "--config", "FILE"); code != 2 || !strings.Contains(stderr, "a token of identity") {
		t.Errorf("another hash: exit code %d, %q", code, stderr)
	}
	if _, stderr, code := command(t, "", "token", "new", "--label", "a\x1b[2J"); code != 2 || !strings.Contains(stderr, "--label: has a character") {
		t.Errorf("a label that moves the cursor: exit code %d, %q", code, stderr)
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2026, 11, 23, 8, 30, 0, 500, time.UTC)
	for text, want := range map[string]string{
		"":                     "0001-01-01T00:00:00Z",
		"90d":                  "2027-02-21T08:30:00Z",
		"12h":                  "2026-11-23T20:30:00Z",
		"2027-01-31":           "2027-01-31T00:00:00Z",
		"2027-01-31T12:00:00Z": "2027-01-31T12:00:00Z",
		"2020-01-01":           "is in the past",
		"-1h":                  "is in the past",
		"0d":                   "is in the past",
		"-1d":                  "is not a time",
		"99999999d":            "is not a time",
		"soon":                 "is not a time",
	} {
		at, problems := expiry(text, now)
		got := at.Format(time.RFC3339)
		if len(problems) > 0 {
			got = problems[0].What
		}
		if !strings.HasSuffix(got, want) {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

// What the server asks without TLS is nothing that a client may listen in the place of.
func TestBackends(t *testing.T) {
	fallback, err := url.Parse("https://localhost")
	if err != nil {
		t.Fatal(err)
	}
	issuer := func(keys string) config.Issuer { return config.Issuer{Keys: config.Text{Value: keys}} }
	s := &setup{
		web: &web{cfg: &config.Server{Fallback: fallback}},
		access: &access{cfg: &config.Server{Issuers: []config.Issuer{
			issuer("http://localhost:9998/keys"), issuer("http://[::1]/keys"), issuer("https://issuer.example/keys"), issuer("/etc/culvert/keys.pem"),
		}}},
	}
	if got, want := s.backends(), []string{"localhost:443", "localhost:9998", "[::1]:80"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Limits of the file are those that count, of each subject and of all together.
func TestLimitsOfTheFile(t *testing.T) {
	file := write(t, "issuers: [{issuer: i, audience: a, keys: 'https://i.example'}]\nidentities:\n  ops:\n    claims: [{a: b}]\n    allow: everything\n"+
		"    limits: {sessions: 1, streams: 2, opens-per-second: 3, upload: 4KiB, download: 5KiB, bytes-per-day: 6KiB, memory: 7MiB}\n"+
		"    shared-limits: {sessions: 10, streams: 20, opens-per-second: 30, upload: 40KiB, download: 50KiB, bytes-per-day: 60KiB}\n")
	cfg, _, err := config.LoadServer(config.Sources{Flags: map[string][]string{"config": {file}}})
	if err != nil {
		t.Fatal(err)
	}
	issuers, sources, problems := openIssuers(cfg, nil, slog.New(slog.DiscardHandler))
	defer sources.closeBut(nil)
	d, _, more := newDirectory(cfg, nil, auth.DirectoryConfig{Issuers: issuers})
	if problems = append(problems, more...); len(problems) > 0 {
		t.Fatal(problems)
	}
	guard := auth.NewGuard(d)
	if got, want := guard.Limits("ops/alice"), (auth.Limits{Sessions: 1, Streams: 2, OpensPerSecond: 3, Upload: 4 << 10, Download: 5 << 10, BytesPerDay: 6 << 10, Memory: 7 << 20}); got != want {
		t.Errorf("of a subject: %+v", got)
	}
	want := auth.Limits{Sessions: 10, Streams: 20, OpensPerSecond: 30, Upload: 40 << 10, Download: 50 << 10, BytesPerDay: 60 << 10}
	if name, got := guard.SharedLimits("ops/alice"); name != "ops" || got != want {
		t.Errorf("of all of %s: %+v", name, got)
	}
}
