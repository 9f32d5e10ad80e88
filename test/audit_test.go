package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// record is a line of an audit log, with its values as they stand in JSON.
type record map[string]any

// records reads an audit log.
func records(t *testing.T, path string) (all []record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, r)
	}
	return all
}

// await waits for a record with these values and returns it.
func await(t *testing.T, path string, values record) (found record) {
	t.Helper()
	waitFor(t, fmt.Sprint("a record with ", values), func() bool {
		i := slices.IndexFunc(records(t, path), func(r record) bool {
			for key, value := range values {
				if fmt.Sprint(r[key]) != fmt.Sprint(value) {
					return false
				}
			}
			return true
		})
		if i >= 0 {
			found = records(t, path)[i]
		}
		return i >= 0
	})
	return found
}

// The audit log has everything that was let pass and everything that was not, once, and no secret.
func TestAudit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.json")
	up, down := serve(t, echo), serve(t, echo)
	const forbidden = "169.254.169.254:80"
	r := newRig(t, config{
		server: []string{"--audit", path},
		client: slices.Concat(local(up), local(forbidden), remote(down)),
	})
	const wrong = "the-wrong-token-of-a-stranger"
	_, _, code := runProgram(t, nil, programs.Client, "--server", "ws://"+r.address, "--token-file", tokenFile(t, wrong), "-L", "0:"+up)
	if code != exitRefused {
		t.Errorf("a stranger's exit code is %d", code)
	}
	refused := await(t, path, record{"event": "login_refused"})
	if refused["identity"] != nil || refused["remote"] == nil {
		t.Errorf("refused: %v", refused)
	}

	opened := await(t, path, record{"event": "session_opened", "identity": "token-1", "credential": "token"})
	session := func(event string, more record) record {
		all := record{"event": event, "identity": "token-1", "credential": "token", "session": opened["session"]}
		maps.Copy(all, more)
		return all
	}
	await(t, path, record{"event": "login", "identity": "token-1", "remote": opened["remote"]})
	listener := r.forward(down)
	await(t, path, session("listen_opened", record{"target": "localhost:0", "listener": listener, "rule": "allow localhost:*"}))

	conn := connect(t, r.forward(up))
	mustPing(t, conn, "before the cut")
	r.relay.Cut()
	r.client.Expect(patience, "session resumed")
	resumed := await(t, path, session("session_resumed", nil))
	if resumed["remote"] == opened["remote"] {
		t.Errorf("resumed from the same port: %v", resumed)
	}
	mustPing(t, conn, "after")
	_ = conn.CloseWrite()
	wantEnd(t, conn)
	await(t, path, session("stream_opened", record{"kind": "local", "target": up, "address": up, "rule": "allow *:*", "remote": opened["remote"]}))
	ended := await(t, path, session("stream_ended", record{"kind": "local", "target": up, "ended": "closed", "bytes_sent": 19, "bytes_received": 19}))
	if d, ok := ended["duration"].(float64); !ok || d <= 0 || d > 60 {
		t.Errorf("duration %v", ended["duration"])
	}

	wantRefused(t, r.forward(forbidden))
	denied := await(t, path, session("stream_denied", record{"target": forbidden, "address": forbidden}))
	if rule := fmt.Sprint(denied["rule"]); !strings.Contains(rule, "link-local") {
		t.Errorf("denied by %q", rule)
	}

	// As logrotate does, without telling anybody; the server notices after a second.
	if err := os.Rename(path, path+"-yesterday"); err != nil {
		t.Fatal(err)
	}
	var outsider string
	waitFor(t, "another file", func() bool {
		conn := connect(t, listener)
		outsider = conn.LocalAddr().String()
		mustPing(t, conn, "x")
		_ = conn.CloseWrite()
		wantEnd(t, conn)
		_, err := os.Stat(path)
		return err == nil
	})
	await(t, path, session("stream_ended", record{"kind": "remote", "listener": listener, "from": outsider, "bytes_sent": 1, "bytes_received": 1}))

	if code := r.client.Stop(patience); code != 0 {
		t.Errorf("client: exit code %d", code)
	}
	if code := r.server.Stop(patience); code != 0 {
		t.Errorf("server: exit code %d", code)
	}
	await(t, path, session("listen_ended", record{"listener": listener, "ended": "closed"}))
	await(t, path, session("session_ended", nil))

	counts := make(map[any]int)
	var streams [2]int
	for _, r := range append(records(t, path+"-yesterday"), records(t, path)...) {
		counts[r["event"]]++
		if r["kind"] == "remote" {
			streams[0]++
			streams[1] += map[any]int{"stream_opened": 1, "stream_ended": -1}[r["event"]]
			counts[r["event"]]--
		}
	}
	want := map[any]int{
		"login": 2, "login_refused": 1, "session_opened": 1, "session_resumed": 1, "session_ended": 1,
		"stream_opened": 1, "stream_ended": 1, "stream_denied": 1, "listen_opened": 1, "listen_ended": 1,
	}
	if !maps.Equal(counts, want) || streams[0] == 0 || streams[1] != 0 {
		t.Errorf("events %v, want %v; %d of remote streams, %d of them without an end", counts, want, streams[0], streams[1])
	}
	for _, name := range []string{path, path + "-yesterday"} {
		text, err := os.ReadFile(name)
		if err != nil || strings.Contains(string(text), token) || strings.Contains(string(text), wrong) {
			t.Errorf("a secret is in %s, or %v", name, err)
		}
	}
}

// The file is replaced when it has grown.
func TestAuditRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.json")
	target := serve(t, echo)
	r := newRig(t, config{server: []string{"--audit", path, "--audit-max-size", "64KiB", "--audit-keep", "1"}, client: local(target)})
	streams := 0
	waitFor(t, "a second replacement", func() bool {
		for range 50 {
			conn := connect(t, r.forward(target))
			_ = conn.CloseWrite()
			wantEnd(t, conn)
			streams++
		}
		old := records(t, path+".1")
		return len(old) > 0 && old[0]["event"] != "login" // it is not the first one any more
	})
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 2 {
		t.Errorf("files %v, %v", files, err)
	}
	info, err := os.Stat(path + ".1")
	if err != nil || info.Size() > 64<<10 || info.Size() < 60<<10 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	t.Logf("%d streams, %d bytes each", streams, info.Size()*2/int64(len(records(t, path+".1"))))
}
