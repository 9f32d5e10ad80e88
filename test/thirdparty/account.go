package thirdparty

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"testing"

	"culvert/test/agent"
)

// Account is who runs a program that does not want to be root: the user that its package made, or
// whoever runs the test if that is not root.
type Account struct {
	Name string
	Dir  string // the account's own, until the end of the test

	uid, gid uint32
	root     bool // the test is root's
}

// NewAccount is the account of the user name.
func NewAccount(t testing.TB, name string) *Account {
	t.Helper()
	dir, err := os.MkdirTemp("", "culvert-"+name+"-") //nolint:usetesting // another user cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &Account{Dir: dir, root: os.Getuid() == 0}
	me, err := user.Current()
	if a.root {
		me, err = user.Lookup(name)
	}
	if err != nil {
		t.Fatal(err)
	}
	if a.Name = me.Username; !a.root {
		return a
	}
	a.uid, a.gid = id(t, me.Uid), id(t, me.Gid)
	a.own(t, dir)
	return a
}

func id(t testing.TB, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func (a *Account) own(t testing.TB, path string) {
	t.Helper()
	if a.root {
		if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// Command is a program that runs as the account, in its folder.
func (a *Account) Command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	if a.root {
		cmd = agent.RunAs(cmd, a.uid, a.gid)
	}
	cmd.Dir = a.Dir
	return cmd
}

// Config is Config in the account's folder, of a file that it can read.
func (a *Account) Config(t testing.TB, name, text string, pairs ...string) string {
	t.Helper()
	path := Config(t, a.Dir, name, text, pairs...)
	a.own(t, path)
	return path
}
