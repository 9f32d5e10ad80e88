package middlebox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// A reverse proxy in front of the server may want a user name and a password of its own,
// beside the token for culvert. Both get to whom they are for, in every kind of carrier.
func TestNginxWithPassword(t *testing.T) {
	t.Parallel()
	const password = "sesame-of-the-front"
	passwords := filepath.Join(t.TempDir(), "passwords")
	file := filepath.Join(t.TempDir(), "password")
	for name, text := range map[string]string{passwords: "alice:{PLAIN}" + password + "\n", file: password + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	target := website(t, "behind nginx")
	key := filepath.Join(t.TempDir(), "key")
	out, err := exec.Command(programs.Server, "keygen", "--key-file", key).Output()
	if err != nil {
		t.Fatal(err)
	}
	public, _, _ := strings.Cut(string(out[strings.Index(string(out), "culvert-key "):]), "\n")
	port, tokenFile := newServer(t, "--key-file", key)
	asking := func(more string) string {
		return thirdparty.Nginx(t, "127.0.0.1:"+port, `auth_basic "front"; auth_basic_user_file `+passwords+"; "+more)
	}
	upgrades, plain := asking(thirdparty.NginxUpgrades), asking("")
	for _, c := range []struct {
		name  string
		flags []string
	}{
		{"a WebSocket", []string{"--server", "ws://" + upgrades, "--front-user", "alice", "--front-password-file", file}},
		{"an HTTP pipe", []string{"--server", "ws://" + plain, "--front-user", "alice", "--front-password-file", file}},
		{"in the URL", []string{"--server", "ws://alice:" + password + "@" + upgrades}},
		{"a sealed WebSocket", []string{"--server", "ws://" + upgrades, "--front-user", "alice", "--front-password-file", file, "--server-key", public}},
		{"a sealed HTTP pipe", []string{"--server", "ws://" + plain, "--front-user", "alice", "--front-password-file", file, "--server-key", public}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, forward := newClient(t, nil, target, append(c.flags, "--token-file", tokenFile)...)
			if got := get(t, forward); got != "behind nginx" {
				t.Errorf("got %q", got)
			}
			for _, line := range client.Lines() {
				if strings.Contains(line.Text, password) || strings.Contains(line.Text, token) {
					t.Errorf("a secret is in the log: %s", line.Text)
				}
			}
		})
	}
	t.Run("no token", func(t *testing.T) { // of the two credentials, nginx alone wants one
		open := agent.Start(t, "server", agent.Command(programs.Server, "--listen", "127.0.0.1:0", "--insecure-no-auth"))
		address := open.Find(patience, "server listening").Attrs["address"]
		at := thirdparty.Nginx(t, address, `auth_basic "front"; auth_basic_user_file `+passwords+"; "+thirdparty.NginxUpgrades)
		_, forward := newClient(t, nil, target, "--server", "ws://alice:"+password+"@"+at)
		if got := get(t, forward); got != "behind nginx" {
			t.Errorf("got %q", got)
		}
	})
	secrets := []string{password, token, "wrong-password"}
	for _, c := range []struct {
		name, want string
		flags      []string
	}{
		{"no password", "--front-user", []string{"--server", "ws://" + upgrades}},
		{"wrong password", "--front-password-file", []string{"--server", "ws://alice:wrong-password@" + upgrades}},
	} {
		t.Run(c.name, func(t *testing.T) {
			line, code := fails(t, nil, secrets, append(c.flags, "--token-file", tokenFile)...)
			if code != 3 || !strings.Contains(line, "a proxy in front of the server wants") || !strings.Contains(line, c.want) {
				t.Errorf("exit code %d: %s", code, line)
			}
		})
	}
	t.Run("wrong token", func(t *testing.T) {
		wrong := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(wrong, []byte("another-token-than-the-right-one\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		line, code := fails(t, nil, secrets, "--server", "ws://"+upgrades, "--front-user", "alice", "--front-password-file", file, "--token-file", wrong)
		if code != 3 || !strings.Contains(line, "give a token that the server knows") {
			t.Errorf("exit code %d: %s", code, line)
		}
	})
}
