package test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// A signal lets the transfers under way finish, whichever agent it was for.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			verdicts := make(chan error, 1)
			target := serve(t, exchanger(verdicts))
			grace := []string{"--grace", "1m"} // a busy machine may need a while for the transfer
			r := newRig(t, config{server: grace, client: append(local(target), grace...)})
			r.relay.Limit(4 << 20)
			conn := connect(t, r.forward(target))
			result := make(chan error, 1)
			go func() { result <- exchange(conn, request{Seed: 1, Up: 8 << 20, Down: 8 << 20}) }()
			waitFor(t, "the transfer", func() bool { return r.relay.Bytes(0) > 1<<20 && r.relay.Bytes(1) > 1<<20 })

			stopped := r.client
			if who == "server" {
				stopped = r.server
			}
			started := time.Now()
			stopped.Signal(syscall.SIGTERM)
			if err := <-result; err != nil {
				t.Errorf("the transfer under way: %v", err)
			}
			if err := verdict(verdicts); err != nil {
				t.Errorf("target: %v", err)
			}
			transferred := time.Now()
			if code := stopped.Exit(patience); code != 0 {
				t.Errorf("exit code %d", code)
			}
			took := time.Since(transferred).Round(time.Millisecond)
			t.Logf("the transfer ended %v after the signal, the %s %v later", transferred.Sub(started).Round(time.Millisecond), who, took)
			if took > 5*time.Second {
				t.Errorf("it took %v although the transfer had ended", took)
			}
		})
	}
}

// What does not finish within the grace time is reset, and the exit code is 0 all the same.
func TestGraceEnds(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			grace := []string{"--grace", "500ms"}
			r := newRig(t, config{server: grace, client: append(local(target), grace...)})
			conn := connect(t, r.forward(target))
			mustPing(t, conn, "idle from now on")
			stopped := r.client
			if who == "server" {
				stopped = r.server
			}
			started := time.Now()
			if code := stopped.Stop(patience); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if took := time.Since(started); took < 500*time.Millisecond || took > 4*time.Second {
				t.Errorf("it took %v with a grace time of 500 ms", took)
			}
			wantReset(t, conn)
		})
	}
}

// A signal that comes a second or more after the first ends at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			grace := []string{"--grace", "1m"}
			r := newRig(t, config{server: grace, client: append(local(target), grace...)})
			conn := connect(t, r.forward(target))
			mustPing(t, conn, "idle from now on")
			stopped := r.client
			if who == "server" {
				stopped = r.server
			}
			stopped.Signal(syscall.SIGTERM)
			stopped.Expect(patience, "stopping")
			impatient := time.NewTicker(100 * time.Millisecond)
			defer impatient.Stop()
			deadline := time.After(patience)
			for ended := false; !ended; {
				select {
				case <-stopped.Done():
					ended = true
				case <-impatient.C:
					stopped.Signal(syscall.SIGINT)
				case <-deadline:
					t.Fatal("the grace time goes on")
				}
			}
			if code := stopped.Exit(patience); code != 1 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// GNU timeout signals its child twice, as a process and as a member of its group. That is one signal.
func TestGNUTimeout(t *testing.T) {
	t.Parallel()
	path := thirdparty.Program(t, "timeout")
	target := serve(t, echo)
	r := newRig(t, config{client: local(target)})
	cmd := agent.Command(programs.Client, append(local(target), "--server", "ws://"+r.address, "--token-file", tokenFile(t, token), "--grace", "20s")...)
	cmd.Args = append([]string{path, "--preserve-status", "1h"}, cmd.Args...)
	cmd.Path = path
	client := agent.Start(t, "client", cmd)
	t.Cleanup(func() { client.Signal(syscall.SIGTERM) }) // timeout passes it on, and no SIGKILL
	conn := connect(t, client.Find(patience, "forward listening").Attrs["address"])
	mustPing(t, conn, "before")
	client.Signal(syscall.SIGTERM)
	client.Expect(patience, "stopping")
	mustPing(t, conn, "the grace time goes on")
	_ = conn.Close()
	if code := client.Exit(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := client.Count("ending at once"); n != 0 {
		t.Error("two signals at once were taken for two")
	}
}

// After a server has died, applications see a reset and no clean end, and the client serves new ones
// as soon as there is a server again.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{client: append(local(target), "--max-backoff", "300ms")})
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")
	r.server.Kill()
	r.client.Expect(patience, "session lost")
	r.startServer(r.address)
	wantReset(t, conn)
	r.client.Expect(patience, "session opened")
	mustPing(t, connect(t, r.forward(target)), "with the new server")
}

// The same when no server comes back: the reset follows when the window has run out.
func TestServerGoneForGood(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{client: append(local(target), "--resume-window", "1s")})
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")
	r.server.Kill()
	r.client.Expect(patience, "session expired")
	wantReset(t, conn)
}

// A client that was killed and started again takes its remote port over at once, while the server still
// holds its old session, and also when the server cannot know that the old client is gone.
func TestRemotePortIsTakenOver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		silent bool
		within time.Duration
	}{
		{"after a crash", false, 3 * time.Second},
		{"after a path that died silently", true, 14 * time.Second}, // --heartbeat-timeout is 10 s
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			flags := []string{"-R", fmt.Sprintf("%s:%s", thirdparty.FreePort(t), target)}
			r := newRig(t, config{server: []string{"--resume-window", "5s"}, client: flags})
			entrance := r.forward(target)
			conn := connect(t, entrance)
			mustPing(t, conn, "before")
			r.relay.BlackHole(c.silent)
			r.client.Kill()
			started := time.Now()
			r.startClient("ws://"+r.address, flags...)
			r.client.Find(patience, "forward listening", "address", entrance)
			mustPing(t, connect(t, entrance), "with the new client")
			t.Logf("taken over %v after the start", time.Since(started).Round(time.Millisecond))
			if took := time.Since(started); took > c.within {
				t.Errorf("it took %v", took)
			}
			if !c.silent {
				r.server.Expect(patience, "session expired")
				wantReset(t, conn) // the old client's stream
			}
		})
	}
}

// A client behind a path that died silently comes back with the same session and so keeps its port.
func TestRemotePortOutlivesABlackHole(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	r := newRig(t, config{server: quick, client: append(remote(target), quick...)})
	conn := connect(t, r.forward(target))
	mustPing(t, conn, "before")
	r.relay.BlackHole(true)
	r.client.Expect(patience, "session lost")
	r.relay.BlackHole(false)
	r.client.Expect(patience, "session resumed")
	mustPing(t, conn, "after")
	mustPing(t, connect(t, r.forward(target)), "a new one")
}
