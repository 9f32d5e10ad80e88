package test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"culvert/test/agent"
)

// throughBoth runs a test once through a local and once through a remote forward to a target whose
// connections the test handles itself.
func throughBoth(t *testing.T, test func(t *testing.T, app, target *net.TCPConn)) {
	t.Helper()
	accepted := map[string]chan *net.TCPConn{"-L": make(chan *net.TCPConn), "-R": make(chan *net.TCPConn)}
	over := make(chan struct{})
	targets := make(map[string]string)
	for kind, conns := range accepted {
		targets[kind] = serve(t, func(conn *net.TCPConn) {
			select {
			case conns <- conn:
				<-over
			case <-over:
			}
		})
	}
	t.Cleanup(func() { close(over) }) // before the targets' own clean-up
	r := newRig(t, config{client: []string{"-L", "0:" + targets["-L"], "-R", "0:" + targets["-R"]}})
	for kind, conns := range accepted {
		entrance := r.forward(targets[kind])
		t.Run(kind, func(t *testing.T) {
			app := connect(t, entrance)
			if _, err := app.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case target := <-conns:
				extend(t, target, time.Minute)
				wantBytes(t, target, "hello")
				test(t, app, target)
			case <-time.After(patience):
				t.Fatal("no connection at the target")
			}
		})
	}
}

func wantBytes(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v, want %q", got, err, want)
	}
}

func write(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func closeWrite(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	throughBoth(t, func(t *testing.T, app, target *net.TCPConn) {
		// The application ends its direction; the other one goes on.
		closeWrite(t, app)
		wantEnd(t, target)
		answer := bytes.Repeat([]byte("answer"), 50_000)
		write(t, target, string(answer))
		closeWrite(t, target)
		got, err := io.ReadAll(app)
		if err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestHalfCloseByTheTarget(t *testing.T) {
	t.Parallel()
	throughBoth(t, func(t *testing.T, app, target *net.TCPConn) {
		write(t, target, "that is all")
		closeWrite(t, target)
		wantBytes(t, app, "that is all")
		wantEnd(t, app)
		write(t, app, "more to say")
		wantBytes(t, target, "more to say")
		closeWrite(t, app)
		wantEnd(t, target)
	})
}

func TestResetByTheTarget(t *testing.T) {
	t.Parallel()
	throughBoth(t, func(t *testing.T, app, target *net.TCPConn) {
		write(t, target, "truncat")
		wantBytes(t, app, "truncat")
		reset(target)
		wantReset(t, app)
	})
}

func TestResetByTheApplication(t *testing.T) {
	t.Parallel()
	throughBoth(t, func(t *testing.T, app, target *net.TCPConn) {
		reset(app)
		wantReset(t, target)
	})
}

// A reset also ends a direction that is stuck because nobody reads.
func TestResetWithFullWindows(t *testing.T) {
	t.Parallel()
	throughBoth(t, func(t *testing.T, app, target *net.TCPConn) {
		stuck := make(chan error, 1)
		go func() {
			_, err := io.Copy(target, content(1))
			stuck <- err
		}()
		wantBytes(t, app, firstBytes(1, 5))
		reset(app)
		select {
		case err := <-stuck:
			if err == nil {
				t.Error("the target's writes went on")
			}
		case <-time.After(patience):
			t.Error("the target's writes are stuck")
		}
	})
}

func firstBytes(seed uint64, n int) string {
	p := make([]byte, n)
	_, _ = io.ReadFull(content(seed), p) // never fails
	return string(p)
}

// A server that speaks first is heard although the application says nothing.
func TestTargetSpeaksFirst(t *testing.T) {
	t.Parallel()
	target := serve(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "220 ready\r\n") })
	r := newRig(t, config{client: append(local(target), remote(target)...)})
	for _, kind := range []string{"local", "remote"} {
		entrance := r.client.Expect(patience, "forward listening").Attrs["address"]
		got, err := io.ReadAll(connect(t, entrance))
		if err != nil || string(got) != "220 ready\r\n" {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
	}
}

// The ways in which a target cannot be reached are told apart, logged at both ends, and seen as a reset.
func TestTargetsThatCannotBeReached(t *testing.T) {
	t.Parallel()
	type unreachable struct{ name, target, code string }
	cases := []unreachable{
		{"refused", closed(t), "refused"},
		{"unresolvable", "no-such-host.invalid:80", "unresolvable"},
		{"timeout", deaf(t), "timed out"},
	}
	for _, kind := range []string{"-L", "-R"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cases := cases
			if kind == "-L" {
				// By the server's policy, before anything is sent.
				cases = append(cases[:len(cases):len(cases)], unreachable{"denied", "169.254.169.254:80", "denied"})
			}
			var flags []string
			for _, c := range cases {
				flags = append(flags, kind, "0:"+c.target)
			}
			dial := []string{"--dial-timeout", "1s"}
			r := newRig(t, config{server: dial, client: append(flags, dial...)})
			for _, c := range cases {
				entrance := r.forward(c.target)
				wantRefused(t, entrance)
				// Only the client knows the target of its own remote forwards.
				atServer := c.target
				if kind == "-R" {
					atServer = entrance
				}
				for _, line := range []agent.Line{
					r.client.Find(patience, "target refused", "target", c.target),
					r.server.Find(patience, "target refused", "target", atServer),
				} {
					if line.Attrs["code"] != c.code || line.Attrs["reason"] == "" || line.Attrs["stream"] == "" ||
						line.Attrs["session"] == "" {
						t.Errorf("%s: %s", c.name, line)
					}
				}
			}
		})
	}
}
