package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Relative paths in a file begin at the directory of the file, all others at the working
// directory.
func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	config := filepath.Join("etc", "culvert.yaml")
	for agent, table := range map[string]func() []Option{"client": ClientOptions, "server": ServerOptions} {
		for _, o := range table() {
			if o.file == nil || o.FlagOnly {
				continue
			}
			content := o.Name + ": keys/name\n"
			for _, tt := range []struct {
				source      string
				content     string
				env, flag   string
				wantedBelow string
			}{
				{"file", content, "", "", filepath.Join(dir, "etc")},
				{"environment", content, "keys/name", "", dir},
				{"flag", content, "", "keys/name", dir},
			} {
				if err := os.WriteFile(config, []byte(tt.content), 0o600); err != nil {
					t.Fatal(err)
				}
				src := Sources{Flags: map[string][]string{"config": {config}}, LookupEnv: environment(map[string]string{o.Env(): tt.env})}
				if tt.flag != "" {
					src.Flags[o.Name] = []string{tt.flag}
				}
				options := table()
				l := load(options, src)
				got := *find(options, o.Name).target.(*string)
				if want := filepath.Join(tt.wantedBelow, "keys", "name"); got != want || len(l.problems) > 0 {
					t.Errorf("%s: %s from the %s is %q, want %q; %v", agent, o.Name, tt.source, got, want, l.problems)
				}
			}
		}
	}
}

// Values that are no paths stay as they are, and so do absolute paths.
func TestNotRelativePaths(t *testing.T) {
	absolute := filepath.Join(t.TempDir(), "file")
	c, _, err := LoadClient(sources(t, fmt.Sprintf("state-file: none\nserver: wss://h\ntls-ca: %q\n", absolute), nil, nil))
	if err != nil || c.StateFile != "none" || c.TLSCA != absolute {
		t.Errorf("%q, %q, %v", c.StateFile, c.TLSCA, err)
	}
	s, _, err := LoadServer(sources(t, `audit: "-"
token: sesame
issuers:
  - {issuer: https://a.example, audience: culvert, keys: https://a.example/keys}
`, nil, nil))
	if err != nil || s.Audit != "-" || s.Issuers[0].Keys.Value != "https://a.example/keys" {
		t.Errorf("%+v, %v", s, err)
	}
}

// Problems in a file name its absolute path.
func TestProblemsNameTheAbsolutePath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, content := range map[string]string{"bad.yaml": "server: nonsense\n", "missing.yaml": ""} {
		if content != "" {
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, src := range []Sources{
			{Flags: map[string][]string{"config": {name}}},
			{LookupEnv: environment(map[string]string{"CULVERT_CONFIG": name + "\n"})},
		} {
			if _, _, err := LoadClient(src); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, name)+":") {
				t.Errorf("%v, want a problem in %s", err, filepath.Join(dir, name))
			}
		}
	}
}
