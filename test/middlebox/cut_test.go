package middlebox

import (
	"testing"
	"time"

	"culvert/test/netfault"
	"culvert/test/thirdparty"
)

// Behind boxes that cut nothing themselves, with a path behind them that is cut every five seconds, silence
// costs nothing and a download arrives whole: by whatever way the client gets through.
func TestCutsBehindBoxes(t *testing.T) {
	t.Parallel()
	for _, box := range []struct {
		name  string
		flags func(t *testing.T, port string) []string // of a client of the server at port
	}{
		{"nginx without Upgrade", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://" + thirdparty.Nginx(t, "127.0.0.1:"+port, "")}
		}},
		{"nginx that buffers", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://" + thirdparty.Nginx(t, "127.0.0.1:"+port, "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;")}
		}},
		{"HAProxy", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://" + newHAProxy(t, port, "timeout tunnel 1h").address}
		}},
		{"Squid, Basic", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://tunnel.test:" + port, "--allow-plaintext",
				"--proxy", newSquid(t, "basic", port).url(squidUser, squidPassword)}
		}},
		{"Squid, Digest", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://tunnel.test:" + port, "--allow-plaintext",
				"--proxy", newSquid(t, "digest", port).url(squidUser, squidPassword)}
		}},
		{"Squid without CONNECT", func(t *testing.T, port string) []string {
			return []string{"--server", "ws://tunnel.test:" + port, "--allow-plaintext",
				"--proxy", newSquidFor(t, "!CONNECT", "none", port).url("", "")}
		}},
	} {
		t.Run(box.name, func(t *testing.T) {
			t.Parallel()
			port, tokenFile := newServer(t)
			path, err := netfault.Listen("127.0.0.1:" + port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = path.Close() })
			echoing, slow := here.serve(t, echo), here.serve(t, pieces(1<<20, 3*time.Second, 25*time.Second))
			flags := append(box.flags(t, portOf(path.Addr())), "--token-file", tokenFile, "-L", "0:"+slow)
			client, _ := newClient(t, nil, echoing, flags...)
			t.Cleanup(path.CutEvery(5 * time.Second))
			here.survives(t, client, echoing, slow)
			if cuts := path.Cuts(); cuts < 4 {
				t.Errorf("only %d cuts", cuts)
			}
		})
	}
}
