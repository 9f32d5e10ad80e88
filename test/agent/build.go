package agent

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Programs are the paths of one build.
type Programs struct {
	Client, Server string
}

// Build puts both programs into dir.
func Build(dir string, race bool) (Programs, error) {
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "culvert/cmd/culvert-client", "culvert/cmd/culvert-server")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return Programs{}, fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	suffix := ""
	if runtime.GOOS == "windows" {
		suffix = ".exe"
	}
	return Programs{
		Client: filepath.Join(dir, "culvert-client"+suffix),
		Server: filepath.Join(dir, "culvert-server"+suffix),
	}, nil
}
