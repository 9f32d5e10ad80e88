package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// check looks at everything that running would look at first, and connects to nobody.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		code int
		out  string // on standard output
		err  string // on standard error
	}{
		{"good", []string{"--server", "ws://localhost:1", "-L5432", "-R", "8000:3000"}, 0, "ok: 1 servers, 1 forwards here (-L), 1 forwards at the server (-R)", ""},
		{"as for ssh", []string{"--server", "ws://localhost:1", "-N", "-L5432"}, 0, "ok: 1 servers, 1 forwards here (-L)", ""},
		{"no forward", []string{"--server", "ws://localhost:1"}, 0, "ok: 1 servers", "there is no forward"},
		{"no server", nil, 2, "", "--server: is not set"},
		{"a file that is not there", []string{"--server", "wss://localhost:1", "--tls-ca", filepath.Join(t.TempDir(), "gone.pem")}, 2, "", "--tls-ca: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, err strings.Builder
			code := run(t.Context(), append([]string{"culvert-client", "check"}, tt.args...), nil, &out, &err)
			if code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(err.String(), tt.err) {
				t.Errorf("exit code %d, %q, %q", code, &out, &err)
			}
		})
	}
}
