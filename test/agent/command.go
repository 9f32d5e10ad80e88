package agent

import (
	"os"
	"os/exec"
	"strings"
)

// Command is a program of ours that logs JSON, in the Environment of tests.
func Command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, append([]string{"--log-format", "json"}, args...)...)
	cmd.Env = Environment()
	return cmd
}

// Environment is this machine's, without what would configure a program of ours, and more.
func Environment(more ...string) []string {
	env := []string{"GORACE=halt_on_error=1", "CULVERT_STATE_FILE=none"}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "CULVERT_") && !strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			env = append(env, entry)
		}
	}
	return append(env, more...)
}
