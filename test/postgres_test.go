package test

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// PostgreSQL: a benchmark's transactions go on while the WebSocket is cut every two seconds.
func TestPostgreSQL(t *testing.T) {
	seconds := "3"
	if full() {
		seconds = "9"
	}
	const folder = "/usr/lib/postgresql/*/bin"
	pgbench := thirdparty.Program(t, "pgbench", folder)
	address, name := newPostgres(t, thirdparty.Program(t, "initdb", folder), thirdparty.Program(t, "postgres", folder))
	r := newRig(t, config{programs: &measured, client: local(address)})
	port := portOf(r.forward(address))
	bench := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, pgbench, append([]string{
			"-h", "127.0.0.1", "-p", port, "-U", name, "postgres",
		}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("pgbench %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	bench("--initialize", "--quiet", "--scale", "2")
	interval := 2 * time.Second
	if !full() {
		interval = 500 * time.Millisecond
	}
	defer r.relay.CutEvery(interval)()
	out := bench("--client", "4", "--jobs", "2", "--time", seconds)
	t.Logf("%s%d carriers cut, %d resumes", out, r.relay.Cuts(), r.client.Count("session resumed"))
	if !strings.Contains(out, "number of failed transactions: 0 ") {
		t.Error("transactions failed")
	}
	if r.client.Count("session resumed") < 2 {
		t.Error("the WebSocket was hardly cut")
	}
}

// newPostgres starts a PostgreSQL server of the test's own, as another user when the test is root's.
func newPostgres(t *testing.T, initdb, postgres string) (address, name string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "culvert-pg-") //nolint:usetesting // another user cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	as := func(cmd *exec.Cmd) *exec.Cmd { return cmd }
	if os.Getuid() == 0 {
		if me, err = user.Lookup("postgres"); err != nil {
			t.Fatal(err)
		}
		uid, err := strconv.Atoi(me.Uid)
		if err != nil {
			t.Fatal(err)
		}
		gid, err := strconv.Atoi(me.Gid)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		as = func(cmd *exec.Cmd) *exec.Cmd { return agent.RunAs(cmd, uint32(uid), uint32(gid)) }
	}
	data, port := filepath.Join(dir, "data"), thirdparty.FreePort(t)
	create := as(exec.Command(initdb, "--pgdata", data, "--auth", "trust", "--username", me.Username, "--no-sync", "--locale", "C"))
	create.Dir = dir
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	server := as(exec.Command(postgres, "-D", data, "-p", port, "-h", "127.0.0.1", "-k", dir, "-F"))
	server.Dir = dir
	p := agent.Start(t, "postgres", server)
	p.ExpectText(patience, "ready to accept connections")
	t.Cleanup(func() {
		p.Signal(os.Interrupt) // fast shutdown, so that its own processes end with it
		p.Exit(patience)
	})
	return "127.0.0.1:" + port, me.Username
}
