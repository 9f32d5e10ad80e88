package thirdparty

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
)

// NginxUpgrades is what nginx has to be told to let upgrades pass.
const NginxUpgrades = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"

// Nginx starts a reverse proxy of the test's own in front of server ("host:port"), with more directives
// for its location, and returns its address.
func Nginx(t *testing.T, server, location string) (address string) {
	t.Helper()
	return startNginx(t, "", server, location)
}

// NginxBalancer starts a load balancer of the test's own in front of servers ("host:port"), which method, a
// directive of nginx, chooses among, "" for one after the other, and returns its address.
func NginxBalancer(t *testing.T, method string, servers ...string) (address string) {
	t.Helper()
	return startNginx(t, "upstream balanced { "+method+" server "+strings.Join(servers, "; server ")+"; }", "balanced", "")
}

func startNginx(t *testing.T, directives, server, location string) (address string) {
	t.Helper()
	path := Program(t, "nginx")
	dir, address := t.TempDir(), "127.0.0.1:"+FreePort(t)
	file := Config(t, dir, "nginx.conf", `
daemon off;
master_process off;
worker_processes 1;
pid DIR/pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	error_log stderr error;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	DIRECTIVES
	server {
		listen FRONT;
		location / {
			proxy_pass http://SERVER;
			LOCATION
		}
	}
}
`, "FRONT", address, "SERVER", server, "LOCATION", location, "DIRECTIVES", directives)
	nginx := agent.Start(t, "nginx", exec.Command(path, "-c", file, "-p", dir, "-e", "stderr"))
	nginx.ExpectText(15*time.Second, "event method") // it listens before it says so
	return address
}
