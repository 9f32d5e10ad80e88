package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestTables checks what a row can get wrong.
func TestTables(t *testing.T) {
	for agent, options := range map[string][]Option{"client": ClientOptions(), "server": ServerOptions()} {
		names, targets := map[string]bool{"help": true, "version": true, "h": true}, map[any]bool{}
		for _, o := range options {
			for _, name := range []string{o.Name, o.Short} {
				if names[name] {
					t.Errorf("%s: the name %s is given twice", agent, name)
				}
				names[name] = name != ""
			}
			if targets[o.target] {
				t.Errorf("%s: %s shares its field with another option", agent, o.Name)
			}
			targets[o.target] = true
			if o.Help == "" || strings.HasSuffix(o.Help, ".") || strings.ContainsAny(o.Help, "|\n") {
				t.Errorf("%s: help of %s: %q", agent, o.Name, o.Help)
			}
			if names := strings.Contains(o.Placeholder, "FILE") || strings.Contains(o.Placeholder, "DIR"); names != (o.file != nil) {
				t.Errorf("%s: relative paths in %s: %v", agent, o.Name, o.file != nil)
			}
			o.reset() // panics or not, for every type of field
			if !reflect.ValueOf(o.target).Elem().IsZero() {
				t.Errorf("%s: reset of %s does nothing", agent, o.Name)
			}
		}
	}
}

// TestExamples checks that the example files have every option of the table and no
// other, that all of it is valid, also what is commented out, and that the values
// shown for options with a default are the defaults.
func TestExamples(t *testing.T) {
	load := map[string]func(Sources) error{
		"client": func(s Sources) error { _, w, err := LoadClient(s); noWarnings(t, w); return err },
		"server": func(s Sources) error { _, w, err := LoadServer(s); noWarnings(t, w); return err },
	}
	for agent, options := range map[string]func() []Option{"client": ClientOptions, "server": ServerOptions} {
		t.Run(agent, func(t *testing.T) {
			path := filepath.Join("examples", agent+".yaml")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := load[agent](Sources{Flags: map[string][]string{"config": {path}}}); err != nil {
				t.Error(err)
			}

			all := regexp.MustCompile(`(?m)^#([a-z]|  +\S)`).ReplaceAllString(string(text), "$1")
			table, server := options(), new(Server)
			values, problems := decode(path, []byte(all), table, server.sections()...)
			if agent == "server" && (len(server.Identities) == 0 || len(server.Issuers) == 0) {
				t.Error("there are no identities or issuers in the example")
			}
			for _, p := range problems {
				t.Error(p)
			}
			for _, o := range table {
				if _, ok := values[o.Name]; ok == o.FlagOnly {
					t.Errorf("%s is in the example: %v", o.Name, ok)
				}
				o.reset()
				for _, v := range values[o.Name] {
					if err := o.assign(v.text); err != nil {
						t.Errorf("%s: %v", v.origin, err)
					}
				}
				if want := find(options(), o.Name); o.Default != "" {
					if err := want.assign(o.Default); err != nil || !reflect.DeepEqual(o.target, want.target) {
						t.Errorf("the example of %s is not its default, %s", o.Name, o.Default)
					}
				}
			}
		})
	}
}

func noWarnings(t *testing.T, warnings []string) {
	t.Helper()
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestFlagTable(t *testing.T) {
	table := FlagTable(ClientOptions())
	for _, want := range []string{
		"| `--config FILE` | `CULVERT_CONFIG` |  | YAML file",
		"| `-L, --local [BIND:]PORT:HOST:PORT` | `CULVERT_LOCAL` |",
		"| `--log-format text\\|json` | `CULVERT_LOG_FORMAT` | `text` |",
		"| `--max-backoff DURATION` | `CULVERT_MAX_BACKOFF` | `30s` |",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if got, want := strings.Count(table, "\n"), len(ClientOptions())+2; got != want {
		t.Errorf("%d lines, want %d", got, want)
	}
}

// FuzzDecode looks for panics and for problems that are not one line each.
func FuzzDecode(f *testing.F) {
	for _, agent := range []string{"client", "server"} {
		text, err := os.ReadFile(filepath.Join("examples", agent+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, s := range []string{"a: *a", "&a a: 1", "? [a]\n: 1", "<<: {a: 1}", "header: [{a: b}]", "--- \n---\n", "!!map {}", "token: !!binary x", "\xff", "{", "path: |\n  /"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		options := ClientOptions()
		values, problems := decode("f", data, options)
		for _, p := range problems {
			if s := p.String(); strings.ContainsAny(s, "\n\r") || p.What == "" || p.File == "" {
				t.Errorf("problem %q", s)
			}
		}
		for _, o := range options {
			for _, v := range values[o.Name] {
				if err := o.assign(v.text); err != nil && strings.ContainsAny(err.Error(), "\n\r") {
					t.Errorf("%s: %q", o.Name, err)
				}
			}
		}
	})
}
