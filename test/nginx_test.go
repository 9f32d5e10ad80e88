package test

import (
	"os/exec"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// A reverse proxy that ends every WebSocket after five idle seconds does not harm a stream that is
// silent for twenty, whether heartbeats keep the carrier alive or the session outlives it.
func TestNginxWithAShortReadTimeout(t *testing.T) {
	t.Parallel()
	silence := 20 * time.Second
	if !full() {
		silence = 12 * time.Second
	}
	path := thirdparty.Program(t, "nginx")
	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0")
	front := newNginx(t, path, r.address)
	for _, c := range []struct {
		name  string
		flags []string
		lost  bool
	}{
		{"heartbeats faster than the proxy", []string{"--heartbeat", "2s"}, false},
		{"heartbeats slower than the proxy", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &rig{t: t, programs: programs}
			r.startClient("ws://"+front, append(append(local(target), remote(target)...), c.flags...)...)
			there := connect(t, r.client.Expect(patience, "forward listening").Attrs["address"])
			back := connect(t, r.client.Expect(patience, "forward listening").Attrs["address"])
			mustPing(t, there, "before")
			mustPing(t, back, "before")
			<-time.After(silence)
			t.Logf("echo after %v of silence: %v, %v; the carrier was lost %d times", silence,
				mustPing(t, there, "after"), mustPing(t, back, "after"), r.client.Count("session lost"))
			if lost := r.client.Count("session lost"); c.lost != (lost > 0) {
				t.Errorf("the carrier was lost %d times", lost)
			}
		})
	}
}

// newNginx starts a proxy of the test's own in front of a server and returns its address.
func newNginx(t *testing.T, path, server string) string {
	t.Helper()
	dir, address := t.TempDir(), "127.0.0.1:"+thirdparty.FreePort(t)
	file := thirdparty.Config(t, dir, "nginx.conf", `
daemon off;
master_process off;
worker_processes 1;
pid DIR/pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen FRONT;
		location / {
			proxy_pass http://SERVER;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection upgrade;
			proxy_read_timeout 5s;
		}
	}
}
`, "FRONT", address, "SERVER", server)
	nginx := agent.Start(t, "nginx", exec.Command(path, "-c", file, "-p", dir, "-e", "stderr"))
	nginx.ExpectText(patience, "event method") // it listens before it says so
	return address
}
