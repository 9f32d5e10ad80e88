package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// writeFile returns the path of a new file that load_test's expectations call FILE.
func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "culvert.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// sources puts flags, variables and a file together.
func sources(t *testing.T, file string, env map[string]string, flags map[string][]string) Sources {
	t.Helper()
	all := map[string][]string{}
	if file != "" {
		all["config"] = []string{writeFile(t, file)}
	}
	for name, values := range flags {
		all[name] = values
	}
	return Sources{Flags: all, LookupEnv: environment(env)}
}

func TestClientDefaults(t *testing.T) {
	c, warnings, err := LoadClient(Sources{Flags: map[string][]string{"server": {"wss://example.com"}, "local": {"1:h:1"}}})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if len(c.Servers) != 1 || c.Servers[0].String() != "wss://example.com/" || c.ServerOrder != "in-order" {
		t.Errorf("servers are %s, %s", c.Servers, c.ServerOrder)
	}
	if c.MaxBackoff != 30*time.Second {
		t.Errorf("max-backoff is %s", c.MaxBackoff)
	}
	want := Settings{
		ResumeWindow: time.Minute, ReplayBuffer: 16 << 20, Heartbeat: 20 * time.Second, HeartbeatTimeout: 10 * time.Second,
		HandshakeTimeout: 10 * time.Second, OpenTimeout: 10 * time.Second, ConnectWait: 30 * time.Second, DialTimeout: 10 * time.Second, Grace: 10 * time.Second,
		MaxMessage: 128 << 10, MaxStreams: 16384, MaxForwards: 64, MaxPending: 1024, SessionMemory: 64 << 20, Memory: 256 << 20,
		LogFormat: "text", LogLevel: slog.LevelInfo,
	}
	if c.Settings != want {
		t.Errorf("settings are %+v, want %+v", c.Settings, want)
	}
}

// TestPrecedence sets every option in each subset of the sources and looks at who
// wins.
func TestPrecedence(t *testing.T) {
	for _, table := range []struct {
		agent   string
		options func() []Option
	}{{"client", ClientOptions}, {"server", ServerOptions}} {
		for _, o := range table.options() {
			if o.FlagOnly {
				continue
			}
			t.Run(table.agent+"/"+o.Name, func(t *testing.T) {
				texts := distinct(t, o)
				for set := range 8 {
					var file string
					env, flags := map[string]string{}, map[string][]string{}
					want := o.Default
					if set&1 != 0 {
						want, file = texts[0], fmt.Sprintf("%s: %s\n", o.Name, yamlOf(o, texts[0]))
					}
					if set&2 != 0 {
						want, env[o.Env()] = texts[1], texts[1]
					}
					if set&4 != 0 {
						want, flags[o.Name] = texts[2], []string{texts[2]}
					}
					options := table.options()
					l := load(options, sources(t, file, env, flags))
					if l.problems != nil {
						t.Fatal(l.problems)
					}
					got := find(options, o.Name)
					fresh := find(table.options(), o.Name)
					if want != "" {
						if err := fresh.assign(want); err != nil {
							t.Fatal(err)
						}
					}
					if !reflect.DeepEqual(got.target, fresh.target) {
						t.Errorf("sources %03b: the value is not %q", set, want)
					}
				}
			})
		}
	}
}

func find(options []Option, name string) Option {
	for _, o := range options {
		if o.Name == name {
			return o
		}
	}
	panic(name)
}

// distinct returns three values that o takes; those of a bool cannot all differ.
func distinct(t *testing.T, o Option) [3]string {
	t.Helper()
	switch o.Kind() {
	case KindBool:
		return [3]string{"true", "false", "true"}
	case KindNumber:
		return [3]string{"101", "102", "103"}
	case KindDuration:
		return [3]string{"11s", "12s", "13s"}
	case KindSize:
		return [3]string{Size(o.min).String(), fmt.Sprint(o.min + 1), Size(2 * o.min).String()}
	case KindForwards:
		return [3]string{"1:h:1", "2:h:2", "3:h:3"}
	case KindHeaders:
		return [3]string{"X-A: 1, 2", "X-B: 3, 4", "X-C: 5, 6"}
	}
	if n := len(o.choices); n > 0 {
		return [3]string{o.choices[0], o.choices[n-1], o.choices[0]}
	}
	if o.file != nil {
		dir := t.TempDir()
		return [3]string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")}
	}
	switch o.Name {
	case "server":
		return [3]string{"ws://a", "ws://b", "ws://c"}
	case "proxy":
		return [3]string{"http://a:1", "socks5://b", "none"}
	case "listen", "acme-http":
		return [3]string{":1", ":2", ":3"}
	case "dial-address":
		return [3]string{"a:1", "b:2", "[::1]:3"}
	case "acme-domain":
		return [3]string{"a.example", "b.example", "c.example"}
	case "acme-email":
		return [3]string{"a@example.com", "b@example.com", "c@example.com"}
	case "acme-directory", "fallback", "allow-origin":
		return [3]string{"https://a.example", "https://b.example", "https://c.example"}
	case "trusted-proxy":
		return [3]string{"10.0.0.0/8", "10.0.0.1", "fd00::/8"}
	case "tls-pin":
		return [3]string{pin("A"), pin("B"), pin("C")}
	case "server-key":
		return [3]string{publicKey("A"), publicKey("B") + " comment", publicKey("C")}
	case "path":
		return [3]string{"/a", "/b", "/c"}
	}
	return [3]string{"a", "b", "c"}
}

// nameOf is the last part of a path, "" of none.
func nameOf(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Base(path)
}

// pin is one of 32 bytes.
func pin(letter string) string       { return "sha256/" + strings.Repeat(letter, 42) + "A=" }
func publicKey(letter string) string { return "culvert-key " + strings.Repeat(letter, 42) + "A=" }

func yamlOf(o Option, text string) string {
	switch o.Kind() {
	case KindForwards, KindHeaders:
		return fmt.Sprintf("[%q]", text)
	case KindBool, KindNumber:
		return text
	}
	return fmt.Sprintf("%q", text)
}

const good = "server: wss://example.com\nlocal: [\"1:h:1\"]\n"

func TestClientProblems(t *testing.T) {
	tests := []struct {
		name  string
		file  string
		env   map[string]string
		flags map[string][]string
		want  string // lines; FILE is the file's path
	}{
		{"nothing", "", nil, nil,
			"--server: is not set; give --server URL, CULVERT_SERVER or the key server in the file of --config"},
		{"unknown key", good + "tokn-file: x\n", nil, nil,
			"FILE:3: tokn-file: there is no such option; did you mean token-file?"},
		{"underscore", good + "max_backoff: 3s\n", nil, nil,
			"FILE:3: max_backoff: there is no such option; did you mean max-backoff?"},
		{"alien key", good + "zzzzzzzzzzzz: x\n", nil, nil,
			"FILE:3: zzzzzzzzzzzz: there is no such option; see --help for the options"},
		{"config in the file", good + "config: x\n", nil, nil,
			"FILE:3: config: cannot stand in the file; give it as a flag or as CULVERT_CONFIG"},
		{"twice", "max-streams: 5\n" + good + "max-streams: 6\nmax-streams: 7\n", nil, nil, lines(
			"FILE:4: max-streams: is given again, first in line 1; keep one of them",
			"FILE:5: max-streams: is given again, first in line 1; keep one of them")},
		{"types", good + "max-streams: many\nretry-initial: \"yes\"\nheartbeat: 20\ngrace: [1s]\ntoken: 12345\npath: {a: b}\nreplay-buffer: 1.5\nmemory:\nremote: 80:h:80\n", nil, nil, lines(
			"FILE:3: max-streams: is a text; give a whole number",
			"FILE:4: retry-initial: is a text; give true or false",
			"FILE:5: heartbeat: is a number; give a duration like 20s or 1m30s",
			"FILE:6: grace: is a list; give a duration like 20s or 1m30s",
			"FILE:7: token: is a number; put it in quotes",
			"FILE:8: path: is a mapping; give a text",
			"FILE:9: replay-buffer: is a number; give a size like 512KiB or 4MiB",
			"FILE:10: memory: has no value; give a size like 512KiB or 4MiB or remove the line",
			"FILE:11: remote: is not a list; put a dash before it, - 80:h:80")},
		{"yaml's traps", good + "remote:\n  - *:80:h:80\n", nil, nil,
			"FILE:4: remote: begins with an asterisk; put it in quotes"},
		{"anchor", good + "path: &x /\n", nil, nil,
			"FILE:3: path: is written with a YAML feature that is not supported; give a text"},
		{"values", good + "max-streams: 0\nheartbeat: soon\ngrace: 99999h\nreplay-buffer: 4MB\nlog-level: loud\npath: tunnel\nmax-message: 0x100\n", nil, nil, lines(
			"FILE:3: max-streams: 0 is out of range; give 1 to 1048576",
			`FILE:4: heartbeat: "soon" is not a duration; give a duration like 20s or 1m30s`,
			"FILE:5: grace: 99999h is out of range; give 0s to 24h",
			`FILE:6: replay-buffer: "4MB" is not a size; write it like 512KiB, 4MiB, 1GiB or as a number of bytes`,
			`FILE:7: log-level: "loud" is not a choice; give debug or info or warn or error`,
			`FILE:8: path: "tunnel" is not a path; write it like / or /tunnel`,
			`FILE:9: max-message: "0x100" is not a size; write it like 512KiB, 4MiB, 1GiB or as a number of bytes`)},
		{"heartbeats", good + "heartbeat: 10s\nheartbeat-min: 11s\nheartbeat-max: 9s\n", nil, nil, lines(
			"FILE:4: heartbeat-min: 11s is more than the heartbeat to begin with (10s); give at most --heartbeat",
			"FILE:5: heartbeat-max: 9s is less than the heartbeat to begin with (10s); give at least --heartbeat")},
		{"forwards", "server: ws://h\nlocal:\n  - 80:h:80\n  - 99999:h:80\n  - 127.0.0.1:80:g:81\n  - 0:h:1\n  - 0:h:1\nremote:\n  - 80:h:80\n  - \"*:80:h:81\"\n", nil, nil, lines(
			"FILE:4: local: port 99999 is out of range; give one from 0 to 65535",
			"FILE:5: local: listens on 127.0.0.1:80 like localhost:80:h:80 (FILE:3); use another port or address for one of them",
			"FILE:10: remote: listens on *:80 like localhost:80:h:80 (FILE:9); use another port or address for one of them")},
		{"all sources at once", "server: ftp://h\n", map[string]string{"CULVERT_LOCAL": "1:h:1 2:h:2, 2:g:2", "CULVERT_GRACE": "x"},
			map[string][]string{"remote": {"0", "1:h:0"}, "heartbeat": {""}}, lines(
				`FILE:1: server: "ftp://h" has the scheme "ftp", which is not ws or wss; write it like wss://example.com or ws://127.0.0.1:8080/path`,
				`CULVERT_GRACE: "x" is not a duration; give a duration like 20s or 1m30s`,
				`--remote: "0" is not a forward; write [BIND:]PORT:HOST:PORT with IPv6 addresses in brackets`,
				"--remote: port 0 is out of range; give one from 1 to 65535",
				"--heartbeat: is empty; give a duration like 20s or 1m30s or leave it out",
				"CULVERT_LOCAL: listens on localhost:2 like localhost:2:h:2 (CULVERT_LOCAL); use another port or address for one of them")},
		{"userinfo without a name", "server: wss://:sesame@h\nlocal: [\"1:h:1\"]\n", nil, nil,
			"FILE:1: server: has no user name before the @; write wss://NAME@HOST for a user of a proxy in front, and give a token with --token-file"},
		{"two users before the server", good, nil, map[string][]string{"server": {"wss://a:sesame@h"}, "front-user": {"b"}},
			"--server: has a user name or a password before the @, and there is another one; give it once"},
		{"a user before one of several servers", good, nil, map[string][]string{"server": {"wss://a:sesame@h", "wss://g"}},
			"--server: has a user name before the @, and there are several servers; give --front-user, which goes to every server, or one server"},
		{"two passwords before the server", good, nil, map[string][]string{"server": {"wss://a:sesame@h"}, "front-password-file": {"f"}},
			"--server: has a password before the @, and there is --front-password-file; give one of the two"},
		{"a colon in the user before the server", good, nil, map[string][]string{"server": {"wss://a%3Ab:sesame@h"}},
			"--server: has a colon in the user name, or a control character, before the @; give --front-user and --front-password-file"},
		{"a control character before the server", good, nil, map[string][]string{"server": {"wss://a:b%0A@h"}},
			"--server: has a colon in the user name, or a control character, before the @; give --front-user and --front-password-file"},
		{"a user before the server without a password", good, nil, map[string][]string{"server": {"wss://a@h"}},
			"--server: needs a password for the user before the server; give --front-password-file FILE or CULVERT_FRONT_PASSWORD too"},
		{"a password before the server without a user", good, map[string]string{"CULVERT_FRONT_PASSWORD": "sesame"}, nil,
			"CULVERT_FRONT_PASSWORD: needs a user; give --front-user NAME too"},
		{"two credentials", good + "token: a\ntoken-file: b\n", nil, nil,
			"FILE:3: token: is given together with --token-file (FILE:4); give one of the two"},
		{"two paths", good, nil, map[string][]string{"server": {"ws://h/a"}, "path": {"/b"}},
			`--path: "/b" differs from the path in the server's URL, "/a"; give the path once`},
		{"TLS without TLS", good, nil, map[string][]string{"server": {"ws://h"}, "tls-ca": {"x"}},
			"--tls-ca: means nothing over ws://; use wss:// in the server's URL or leave it out"},
		{"TLS of a client without TLS", "", nil, map[string][]string{
			"server": {"ws://h", "http://g"}, "tls-cert": {"x"}, "tls-key": {"x"}, "tls-min-version": {"1.3"}, "tls-pin": {pin("A")},
		}, lines(
			"--tls-cert: means nothing over ws://", "--tls-key: means nothing over ws://",
			"--tls-min-version: means nothing over ws://", "--tls-pin: means nothing over ws://")},
		{"half of a client's certificate", good + "tls-cert: x\n", nil, nil,
			"FILE:3: tls-cert: needs its private key; give --tls-key too"},
		{"other half of a client's certificate", good + "tls-key: x\n", nil, nil,
			"FILE:3: tls-key: needs its certificate; give --tls-cert too"},
		{"pins", good + "tls-pin: [sha256/AAAA, " + pin("A") + ", 7]\n", nil, map[string][]string{"tls-min-version": {"1.1"}}, lines(
			`FILE:3: tls-pin: "sha256/AAAA" is not the pin of a key; write sha256/ and the sum in base64, 44 characters`,
			"FILE:3: tls-pin: is a number; put it in quotes",
			`--tls-min-version: "1.1" is not a choice; give 1.2 or 1.3`)},
		{"not a key", good + "server-key: " + publicKey("A")[:40] + "\n", nil, nil,
			"FILE:3: server-key: is not a public key; write culvert-key and the key in base64, as keygen prints it"},
		{"a private key for a public one", good + "server-key: culvert-private-key AAAA\n", nil, nil,
			"FILE:3: server-key: is not a public key; write culvert-key and the key in base64, as keygen prints it"},
		{"a key and a token", good + "key-file: x\ntoken: y\n", nil, nil,
			"FILE:4: token: is given together with --key-file (FILE:3); give one of the two"},
		{"address", good + "dial-address: 10.0.0.1\n", nil, nil,
			`FILE:3: dial-address: "10.0.0.1" is not an address; write HOST:PORT with IPv6 addresses in brackets`},
		{"address without a host", good + "dial-address: \":443\"\n", nil, nil,
			`FILE:3: dial-address: ":443" names no host; write HOST:PORT`},
		{"ports of servers", "", nil, map[string][]string{"server": {"wss://a:99999", "wss://b:0/x", "wss://c:080", "wss://u@d:70000"}}, lines(
			`--server: "wss://a:99999" has the port 99999, which is not valid; give one from 1 to 65535`,
			`--server: "wss://b:0/x" has the port 0, which is not valid; give one from 1 to 65535`,
			`--server: "wss://c:080" has the port 080, which is not valid; give one from 1 to 65535`,
			`--server: has the port 70000, which is not valid; give one from 1 to 65535`)},
		{"servers", "server:\n  - wss://a\n  - ftp://b\n  - wss://c/x\n  - wss://a\nserver-order: any\ndial-address: a:1\npath: /y\n", nil, nil, lines(
			`FILE:3: server: "ftp://b" has the scheme "ftp"`,
			`FILE:5: server: is given twice (FILE:2); leave one of them out`,
			`FILE:6: server-order: "any" is not a choice; give in-order or random`,
			"FILE:7: dial-address: stands for the address of one server, and there are 3; give one server, or leave it out",
			`FILE:8: path: "/y" differs from the path in the server's URL, "/x"; give the path once`)},
		{"headers", good + "header:\n  - X-Good: a, b\n  - Nothing\n  - \"Authorization: Bearer sesame\"\n  - Origin: h\n  - {X-Bad: [1]}\n", nil, nil, lines(
			"FILE:8: header: is a list; give a list of NAME: VALUE",
			"FILE:5: header: does not begin with a header's name and a colon; write NAME: VALUE",
			"FILE:6: header: Authorization is set by culvert; give culvert's credential with --token-file, and one for a proxy in front with --front-user",
			"FILE:7: header: Origin cannot be given; leave it out")},
		{"dependent sizes", good + "replay-buffer: 64KiB\nsession-memory: 1GiB\n", nil, nil, lines(
			"--memory: 256MiB is less than one session's memory (1GiB); give at least --session-memory",
			"FILE:3: replay-buffer: 64KiB is less than one message (128KiB); give at least --max-message")},
		{"syntax", "server: [\n", nil, nil, "FILE:1: is not YAML"},
		{"not a mapping", "- a\n", nil, nil, "FILE:1: is not a list of options; write NAME: VALUE, one option a line"},
		{"two documents", good + "---\n" + good, nil, nil, "there is more than one document in the file; keep one document"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, tt.file, tt.env, tt.flags)
			_, _, err := LoadClient(src)
			checkProblems(t, src, err, tt.want)
		})
	}
}

func lines(lines ...string) string { return strings.Join(lines, "\n") }

// withoutDashes returns an option that a hint names as it is not typed, "" if there is
// none. Names that are ordinary words too are left out.
func withoutDashes(hint string) string {
	if strings.HasPrefix(hint, "did you mean ") { // a key of the file
		return ""
	}
	for _, o := range append(ClientOptions(), ServerOptions()...) {
		if strings.Contains(o.Name, "-") && regexp.MustCompile(`(^|[^-\w])`+o.Name+`\b`).MatchString(hint) {
			return o.Name
		}
	}
	return ""
}

// checkProblems compares the problems in any order; one may be cut short.
func checkProblems(t *testing.T, src Sources, err error, want string) {
	t.Helper()
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error is %v, want problems", err)
	}
	for _, p := range problems {
		if name := withoutDashes(p.Hint); name != "" {
			t.Errorf("%s is named without its dashes: %s", name, p)
		}
	}
	got := problems.Error()
	if files := src.Flags["config"]; len(files) > 0 {
		got = strings.ReplaceAll(got, files[0], "FILE")
	}
	if strings.Contains(got, "sesame") {
		t.Errorf("a secret is shown: %s", got)
	}
	gotLines := strings.Split(got, "\n")
	wantLines := strings.Split(want, "\n")
	for _, w := range wantLines {
		found := false
		for _, g := range gotLines {
			found = found || strings.Contains(g, w)
		}
		if !found {
			t.Errorf("missing: %s", w)
		}
	}
	if len(gotLines) != len(wantLines) || t.Failed() {
		t.Errorf("got:\n%s", got)
	}
}

func TestServerProblems(t *testing.T) {
	tests := []struct {
		name  string
		file  string
		flags map[string][]string
		want  string
	}{
		{"no credential", "listen: :80\n", nil,
			"--token-file: no credential is configured; give --token-file FILE or identities in the file of --config, or --insecure-no-auth to let everybody in"},
		{"a wrong credential is not a missing one", "token: {}\n", nil,
			"FILE:1: token: is a mapping; give a text"},
		{"both", "token: x\n", map[string][]string{"insecure-no-auth": {"true"}},
			"--insecure-no-auth: lets everybody in although there is a credential (FILE:1); give one of the two"},
		{"half of TLS", "token: x\ntls-cert: x\n", nil,
			"FILE:2: tls-cert: needs its private key; give --tls-key too"},
		{"other half of TLS", "token: x\ntls-key: x\n", nil,
			"FILE:2: tls-key: needs its certificate; give --tls-cert too"},
		{"client certificates without TLS", "token: x\nclient-ca: x\n", nil,
			"FILE:2: client-ca: means nothing without TLS; give --tls-cert and --tls-key, or --acme-domain"},
		{"revocations without authorities", "token: x\ncrl: x\n", nil,
			"FILE:2: crl: revokes nothing without the authorities of client certificates; give --client-ca too"},
		{"listen", "token: x\nlisten: \"8080\"\n", nil,
			`FILE:2: listen: "8080" is not an address; write HOST:PORT with IPv6 addresses in brackets`},
		{"listen's port", "token: x\nlisten: 1.2.3.4:70000\n", nil,
			"FILE:2: listen: port 70000 is out of range; give one from 0 to 65535"},
		{"sessions", "token: x\nmax-sessions: 2\nmax-sessions-per-identity: 3\n", nil,
			"FILE:3: max-sessions-per-identity: 3 is more than all sessions (2); give at most --max-sessions"},
		{"a client's option", "token: x\nserver: ws://h\n", nil,
			"FILE:2: server: there is no such option; see --help for the options"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, tt.file, nil, tt.flags)
			_, _, err := LoadServer(src)
			checkProblems(t, src, err, tt.want)
		})
	}
}

func TestFileCannotBeRead(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	big := writeFile(t, strings.Repeat("#\n", maxFile/2+1))
	for path, want := range map[string]string{
		missing: missing + ": cannot be read: no such file or directory; check --config",
		big:     big + ": cannot be read: larger than 1048576 bytes; check --config",
	} {
		_, _, err := LoadServer(Sources{Flags: map[string][]string{"config": {path}, "token": {"x"}}})
		if err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
	// The environment names a file too, and a flag is stronger.
	env := environment(map[string]string{"CULVERT_CONFIG": missing})
	if _, _, err := LoadServer(Sources{LookupEnv: env}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("CULVERT_CONFIG is not read: %v", err)
	}
	good := writeFile(t, "token: x\n")
	if _, _, err := LoadServer(Sources{LookupEnv: env, Flags: map[string][]string{"config": {good}}}); err != nil {
		t.Error(err)
	}
}

// A tab in the indentation is called that, in the line where it is.
func TestTabs(t *testing.T) {
	const problem = "is indented with a tab, which YAML does not allow; indent the line with spaces"
	for content, line := range map[string]int{
		"local:\n\t- 1:h:1\n":                                    2,
		"\tserver: wss://h\n":                                    1,
		"path: /\r\nlocal:\r\n\t- 1:h:1\r\n":                     3,
		"local:\n  - 1:h:1\n\t- 2:h:2\n":                         3,
		"header:\n  - 'X-A: b'\n  \t- 'X-C: d'\n":                3,
		"server: wss://h\n\t\npath: /x\n":                        2,
		"# a\n\nserver:\n  - wss://a\n \t # sesame\n  - wss://b": 5,
	} {
		src := sources(t, content, nil, nil)
		_, _, err := LoadClient(src)
		checkProblems(t, src, err, fmt.Sprintf("FILE:%d: %s", line, problem))
	}
	for _, content := range []string{
		"server:\twss://h\t\nlocal:\n  -\t1:h:1\n",            // tabs elsewhere
		"server: wss://h\nlocal: [\n\t'1:h:1',\n\t'2:h:2']\n", // and where YAML allows them
	} {
		if _, _, err := LoadClient(sources(t, content, nil, nil)); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// A variable that was read from a file often ends in a newline.
func TestWhiteSpaceInEnvironment(t *testing.T) {
	for _, around := range [][2]string{{"", "\n"}, {"", "\r\n"}, {"", " "}, {" \t", " \n\n"}} {
		set := make(map[string]string)
		for name, value := range map[string]string{
			"SERVER": "wss://h.example", "USER": "alice", "PASSWORD": "open sesame", "PROXY": "http://p:1", "SEAL": "true",
			"MAX_BACKOFF": "7s", "MAX_STREAMS": "9", "MEMORY": "1GiB", "LOCAL": "1:h:1", "HEADER": "X-A: b", "LOG_LEVEL": "warn",
			"CARRIER": "http", "TLS_CA": "/ca.pem",
		} {
			set["CULVERT_"+name] = around[0] + value + around[1]
		}
		c, _, err := LoadClient(Sources{LookupEnv: environment(set)})
		if err != nil {
			t.Errorf("%q: %v", around, err)
			continue
		}
		proxy, err := c.Proxy(&url.URL{Scheme: "https", Host: "h"})
		if err != nil || proxy.String() != "http://p:1" || c.Servers[0].Host != "h.example" || c.User != "alice" || c.Password.Reveal() != "open sesame" ||
			!c.Seal || c.MaxBackoff != 7*time.Second || c.MaxStreams != 9 || c.Memory != 1<<30 || len(c.Local) != 1 ||
			c.Header["X-A"][0] != "b" || c.LogLevel != slog.LevelWarn || c.Carrier != "http" || c.TLSCA != "/ca.pem" {
			t.Errorf("%q: %+v", around, c)
		}
		s, _, err := LoadServer(Sources{LookupEnv: environment(map[string]string{"CULVERT_TOKEN": around[0] + "sesame" + around[1], "CULVERT_PATH": around[0] + around[1]})})
		if err != nil || s.Token.Reveal() != "sesame" || s.Path != "/" {
			t.Errorf("%q: %v", around, err)
		}
	}
}

// TestCredentials has every way to give a credential, alone and against another.
func TestCredentials(t *testing.T) {
	tests := []struct {
		name      string
		file      string
		env       map[string]string
		flags     map[string][]string
		token     string
		tokenFile string
		warning   string
	}{
		{"file: token", "token: abc\n", nil, nil, "abc", "", ""},
		{"file: token-file", "token-file: f\n", nil, nil, "", "f", ""},
		{"env: token", "", map[string]string{"CULVERT_TOKEN": "abc"}, nil, "abc", "", ""},
		{"env: token-file", "", map[string]string{"CULVERT_TOKEN_FILE": "f"}, nil, "", "f", ""},
		{"flag: token", "", nil, map[string][]string{"token": {"abc"}}, "abc", "", "the token is on the command line"},
		{"flag: token-file", "", nil, map[string][]string{"token-file": {"f"}}, "", "f", ""},
		{"env over file", "token: abc\n", map[string]string{"CULVERT_TOKEN_FILE": "f"}, nil, "", "f", ""},
		{"flag over env", "", map[string]string{"CULVERT_TOKEN": "abc"}, map[string][]string{"token-file": {"f"}}, "", "f", ""},
		{"flag token over env", "", map[string]string{"CULVERT_TOKEN_FILE": "f"}, map[string][]string{"token": {"abc"}}, "abc", "", "the token is on the command line"},
		{"an empty variable is none", "token: abc\n", map[string]string{"CULVERT_TOKEN": ""}, nil, "abc", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(t, tt.file, tt.env, tt.flags)
			s, warnings, err := LoadServer(src)
			if err != nil {
				t.Fatal(err)
			}
			src.Flags["server"], src.Flags["local"] = []string{"wss://h"}, []string{"1:h:1"}
			c, clientWarnings, err := LoadClient(src)
			if err != nil {
				t.Fatal(err)
			}
			secretFile := ""
			if tt.file == "token: abc\n" && tt.token != "" && s.File != "" {
				secretFile = s.File
			}
			if s.SecretFile != secretFile || c.SecretFile != secretFile {
				t.Errorf("SecretFile is %q and %q, want %q", s.SecretFile, c.SecretFile, secretFile)
			}
			for _, got := range []struct {
				token    Secret
				file     string
				warnings []string
			}{{s.Token, s.TokenFile, warnings}, {c.Token, c.TokenFile, clientWarnings}} {
				if got.token.Reveal() != tt.token || nameOf(got.file) != tt.tokenFile {
					t.Errorf("token %q, token-file %q, want %q, %q", got.token.Reveal(), got.file, tt.token, tt.tokenFile)
				}
				if all := strings.Join(got.warnings, "\n"); (tt.warning == "") != (all == "") || !strings.Contains(all, tt.warning) {
					t.Errorf("warnings %q, want %q", all, tt.warning)
				}
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	client := func(flags map[string][]string) ([]string, error) {
		_, w, err := LoadClient(Sources{Flags: flags})
		return w, err
	}
	server := func(flags map[string][]string) ([]string, error) {
		_, w, err := LoadServer(Sources{Flags: flags})
		return w, err
	}
	on := []string{"true"}
	tests := []struct {
		load  func(map[string][]string) ([]string, error)
		flags map[string][]string
		want  string
	}{
		{client, map[string][]string{"server": {"wss://h"}, "local": {"1:h:1"}, "tls-insecure-skip-verify": on}, "NOT verified"},
		{client, map[string][]string{"server": {"ws://h"}, "local": {"1:h:1"}, "allow-plaintext": on, "token-file": {"f"}}, "plain text"},
		{client, map[string][]string{"server": {"wss://g", "ws://h"}, "local": {"1:h:1"}, "allow-plaintext": on, "header-file": {"f"}}, "plain text"},
		{client, map[string][]string{"server": {"ws://front:secret@h"}, "local": {"1:h:1"}, "allow-plaintext": on}, "plain text"},
		{client, map[string][]string{"server": {"ws://h", "wss://g"}, "local": {"1:h:1"}, "tls-insecure-skip-verify": on}, "NOT verified"},
		{client, map[string][]string{"server": {"ws://[::1]"}, "local": {"1:h:1"}, "allow-plaintext": on, "token-file": {"f"}}, ""},
		{client, map[string][]string{"server": {"ws://localhost:1"}, "local": {"1:h:1"}, "allow-plaintext": on, "token-file": {"f"}}, ""},
		{server, map[string][]string{"insecure-no-auth": on, "listen": {":80"}}, "EVERYBODY who can reach :80"},
	}
	for _, tt := range tests {
		warnings, err := tt.load(tt.flags)
		if all := strings.Join(warnings, "\n"); err != nil || (tt.want == "") != (all == "") || !strings.Contains(all, tt.want) {
			t.Errorf("%v: warnings %q, %v, want %q", tt.flags, all, err, tt.want)
		}
	}
}

func TestServerURL(t *testing.T) {
	for _, tt := range []struct{ url, path, want string }{
		{"ws://h", "", "ws://h/"},
		{"ws://h/", "/a", "ws://h/a"},
		{"https://h:8443/a", "", "https://h:8443/a"},
		{"wss://[::1]:80/a?x=1", "/a", "wss://[::1]:80/a?x=1"},
	} {
		flags := map[string][]string{"server": {tt.url}}
		if tt.path != "" {
			flags["path"] = []string{tt.path}
		}
		c, _, err := LoadClient(Sources{Flags: flags})
		if err != nil || len(c.Servers) != 1 || c.Servers[0].String() != tt.want {
			t.Errorf("%s with path %q: %v, %v, want %s", tt.url, tt.path, c.Servers, err, tt.want)
		}
	}
	for _, bad := range []string{"example.com", "example.com:80", "//h", "ws://", "ws://:80", "ws:h", "ws://h:0", "ws://h:", "ws://h:70000", "ws://@h", "ws://h/#x", "ws://h h", "%"} {
		if u, err := parseServer(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, u)
		}
	}
}

// Servers can be given in every source, in an order that counts, and one alone in the
// file without a list.
func TestServers(t *testing.T) {
	for name, tt := range map[string]struct {
		src  Sources
		want string
	}{
		"flags": {Sources{Flags: map[string][]string{"server": {"wss://b", "ws://a/x"}, "path": {"/x"}}}, "[wss://b/x ws://a/x]"},
		"env":   {Sources{LookupEnv: environment(map[string]string{"CULVERT_SERVER": " wss://b\n ws://a?x=1,2"})}, "[wss://b/ ws://a/?x=1,2]"},
		"list":  {sources(t, "server:\n  - wss://b\n  - wss://a\n", nil, nil), "[wss://b/ wss://a/]"},
		"text":  {sources(t, "server: wss://b\n", nil, nil), "[wss://b/]"},
		"stronger": {sources(t, "server: [wss://b, wss://c]\n", nil, map[string][]string{"server": {"wss://a"}}),
			"[wss://a/]"},
	} {
		c, _, err := LoadClient(tt.src)
		if err != nil || fmt.Sprint(c.Servers) != tt.want {
			t.Errorf("%s: %v, %v, want %s", name, c.Servers, err, tt.want)
		}
	}
}

func TestHeaderFile(t *testing.T) {
	header, err := ParseHeaderFile("F", []byte("# tokens\n\n  x-token:  a: b \r\nX-Token: c\nHost: front.example"))
	want := map[string][]string{"X-Token": {"a: b", "c"}, "Host": {"front.example"}}
	if err != nil || !reflect.DeepEqual(header, want) {
		t.Errorf("got %v, %v, want %v", header, err, want)
	}
	header, err = ParseHeaderFile("F", []byte("X-A: sesame\nsesame\n# x\nAuthorization: sesame\nX-B: sesame\x00\nConnection: sesame\n"))
	checkProblems(t, Sources{}, err, lines(
		"F:2: does not begin with a header's name and a colon; write NAME: VALUE",
		"F:4: Authorization is set by culvert; give culvert's credential with --token-file, and one for a proxy in front with --front-user",
		"F:5: X-B has a control character in its value; remove it",
		"F:6: Connection cannot be given; leave it out"))
	if header != nil {
		t.Error("a part of the file is used")
	}
}

func TestHeaders(t *testing.T) {
	want := map[string][]string{"X-A": {"1, 2", "3"}, "X-B": {"a:b"}}
	for name, src := range map[string]Sources{
		"flags":   {Flags: map[string][]string{"header": {"x-a: 1, 2", "X-B:a:b", "X-A:3"}}},
		"env":     {LookupEnv: environment(map[string]string{"CULVERT_HEADER": "X-A: 1, 2\nX-B: a:b\n\nX-A: 3"})},
		"list":    sources(t, "header:\n  - X-A: 1, 2\n  - \"X-B: a:b\"\n  - X-A: 3\n", nil, nil),
		"mapping": sources(t, "header:\n  X-A: 1, 2\n  X-B: a:b\n  x-a: 3\n", nil, nil),
	} {
		c := new(Client)
		l := load(c.options(), src)
		if l.problems != nil || !reflect.DeepEqual(c.Header, want) {
			t.Errorf("%s: %v, %v", name, c.Header, l.problems)
		}
	}
}

func TestSecretIsNotShown(t *testing.T) {
	c, _, err := LoadClient(Sources{Flags: map[string][]string{"server": {"wss://h"}, "token": {"sesame"}}})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	logger.Info("x", "token", c.Token, "config", c)
	logger.Info("x", "config", fmt.Sprintf("%v %+v %#v %s %q %x", c, c, c, c.Token, c.Token, c.Token))
	text, err := json.Marshal(map[string]any{"token": c.Token})
	if err != nil {
		t.Fatal(err)
	}
	type wrapper struct{ inner struct{ secret Secret } }
	var w wrapper
	w.inner.secret = c.Token
	for _, shown := range []string{log.String(), string(text), fmt.Sprintf("%v %+v %#v", w, w, w)} {
		if strings.Contains(shown, "sesame") || strings.Contains(shown, "736573616d65") {
			t.Errorf("the secret is shown: %s", shown)
		}
	}
	if c.Token.Reveal() != "sesame" || c.Token.Empty() || !(Secret{}).Empty() {
		t.Error("Reveal or Empty is wrong")
	}
}

func TestNearest(t *testing.T) {
	names := []string{"token", "token-file", "tls-ca", "local"}
	for word, want := range map[string]string{"tokn": "token", "TOKEN_FILE": "token-file", "loacl": "local", "x": "", "": "", "completely-different": ""} {
		if got := Nearest(word, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
