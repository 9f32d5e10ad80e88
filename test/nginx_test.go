package test

import (
	"testing"
	"time"

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
	target := serve(t, echo)
	r := &rig{t: t, programs: programs}
	r.startServer("127.0.0.1:0")
	front := thirdparty.Nginx(t, r.address, thirdparty.NginxUpgrades+"proxy_read_timeout 5s;")
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
