package program

import (
	"slices"
	"strings"
	"testing"

	"culvert/config"
)

func TestUsual(t *testing.T) {
	p := Program{Options: config.ClientOptions()}
	for _, tt := range []struct{ args, want string }{
		{"", ""},
		{"-L5499:localhost:15432", "-L 5499:localhost:15432"},
		{"-L 1:h:1 -R2:h:2 -N", "-L 1:h:1 -R 2:h:2 -N"},
		{"-L=1:h:1 --local=2", "-L=1:h:1 --local=2"},
		{"doctor -L5432", "doctor -L 5432"},
		{"--token -L5432 --retry-initial -L5432", "--token -L5432 --retry-initial -L 5432"}, // a token may begin like that
		{"-- -L5432", "-- -L5432"},
		{"-L", "-L"},
		{"help", "--help"},
		{"help doctor", "doctor --help"},
		{"version", "--version"},
		{"-v help", "-v help"},
	} {
		args := append([]string{"culvert-client"}, strings.Fields(tt.args)...)
		before := slices.Clone(args)
		if got := strings.Join(p.usual(args)[1:], " "); got != tt.want {
			t.Errorf("%s became %s, want %s", tt.args, got, tt.want)
		}
		if !slices.Equal(args, before) {
			t.Errorf("%s: the arguments were changed to %q", tt.args, args)
		}
	}
}

// The habits of people who know ssh work on the whole way to the configuration.
func TestSpellings(t *testing.T) {
	flags, _, stderr, code := start(t, nil, "-N", "-v", "-L5432", "--local", "1:h:1", "-R", "2:h:2")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for name, want := range map[string][]string{"local": {"5432", "1:h:1"}, "remote": {"2:h:2"}, "log-level": {"debug"}} {
		if !slices.Equal(flags[name], want) {
			t.Errorf("%s is %q, want %q", name, flags[name], want)
		}
	}
	if flags, _, _, _ = start(t, nil, "-v=false"); len(flags["log-level"]) > 0 {
		t.Errorf("with -v=false log-level is %q", flags["log-level"])
	}
	if _, stdout, _, code := start(t, nil, "help"); code != 0 || !strings.Contains(stdout, "Usage: culvert-client") {
		t.Errorf("help: exit code %d, %q", code, stdout)
	}
	if _, stdout, _, code := start(t, nil, "help", "sub"); code != 0 || !strings.Contains(stdout, "culvert-client sub: a command") {
		t.Errorf("help sub: exit code %d, %q", code, stdout)
	}
	if _, stdout, _, code := start(t, nil, "version"); code != 0 || !strings.HasPrefix(stdout, "culvert-client ") {
		t.Errorf("version: exit code %d, %q", code, stdout)
	}
}

// A message names a flag as it was typed.
func TestTyped(t *testing.T) {
	src := config.Sources{
		Flags: map[string][]string{"server": {"ws://localhost"}, "local": {"x", "y", "z"}},
		Typed: map[string][]string{"local": {"-L", "--local"}},
	}
	_, _, err := config.LoadClient(src)
	for _, want := range []string{`-L: "x" is`, `--local: "y" is`, `--local: "z" is`} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}
