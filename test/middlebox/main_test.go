package middlebox

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert/test/agent"
)

// patience is how long a test waits for what should happen soon, on a busy machine.
const patience = 15 * time.Second

const token = "a-token-of-the-middlebox-tests"

// programs are built without the race detector: rates are printed.
var programs agent.Programs

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "culvert-middlebox-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if programs, err = agent.Build(dir, false); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}
