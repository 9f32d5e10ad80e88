package middlebox

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"culvert/test/thirdparty"
)

// Behind an nginx that is not told about WebSocket a tunnel comes up by itself within 5 s, whatever else
// nginx does to requests and answers, and carries interactive traffic and bulk.
func TestNginxWithoutUpgrade(t *testing.T) {
	size := int64(64 << 20)
	for _, c := range []struct{ name, location string }{
		{"as installed", ""}, // HTTP/1.0 to the server, answers buffered unless the server objects
		{"HTTP/1.1", "proxy_http_version 1.1; proxy_set_header Connection '';"},
		{"buffering", "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"},
		{"buffering, small bodies", "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; client_max_body_size 64k;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			echoes, sums := here.serve(t, echo), here.serve(t, sum)
			port, tokenFile := newServer(t)
			front := thirdparty.Nginx(t, "127.0.0.1:"+port, c.location)
			started := time.Now()
			client, toEchoes := newClient(t, nil, echoes, "--server", "ws://"+front, "--token-file", tokenFile, "-L", "0:"+sums)
			up := time.Since(started)
			client.Find(patience, "session opened", "carrier", "http")
			toSums := client.Find(patience, "forward listening", "forward", sums).Attrs["address"]
			if up > 5*time.Second {
				t.Errorf("it took %v to come up", up)
			}

			conn := here.connect(t, toEchoes)
			var times []time.Duration
			for range 100 {
				times = append(times, ask(t, conn, "."))
			}
			slices.Sort(times)
			upload, download := transfer(t, toSums, size)
			t.Logf("up after %v; echo %v, worst of 100 %v; %d MiB at %.0f MB/s up, %.0f MB/s down; %d sessions lost",
				up.Round(time.Millisecond), times[50].Round(time.Microsecond), times[99].Round(time.Microsecond),
				size>>20, upload, download, client.Count("session lost"))
			if lost := client.Count("session lost"); lost > 0 {
				t.Errorf("the carrier was lost %d times", lost)
			}
		})
	}
}

// An nginx may offer the server under another path than the server has.
func TestNginxThatRewritesThePath(t *testing.T) {
	t.Parallel()
	target := website(t, "behind nginx")
	port, tokenFile := newServer(t)
	for _, c := range []struct{ name, upgrades, carrier, want string }{
		{"upgrades pass", thirdparty.NginxUpgrades, "auto", "websocket"},
		{"upgrades are removed", "", "auto", "http"},
		{"HTTP requests wanted", thirdparty.NginxUpgrades, "http", "http"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			front := thirdparty.Nginx(t, "127.0.0.1:9", "} location = /vpn { proxy_pass http://127.0.0.1:"+port+"/; "+c.upgrades)
			client, forward := newClient(t, nil, target, "--server", "ws://"+front+"/vpn", "--token-file", tokenFile, "--carrier", c.carrier)
			if how := client.Find(patience, "session opened").Attrs["carrier"]; how != c.want && (how != "" || c.want != "websocket") {
				t.Errorf("the carrier is %q", how)
			}
			if got := get(t, forward); got != "behind nginx" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// An nginx that knows of upgrades closes them when they are idle for 4 s. (After 5 s a client makes sure
// that a message has arrived, with a ping.)
func TestNginxReadTimeout(t *testing.T) {
	t.Parallel()
	port, tokenFile := newServer(t)
	front := thirdparty.Nginx(t, "127.0.0.1:"+port, thirdparty.NginxUpgrades+"proxy_read_timeout 4s;")
	echoing, slow := here.serve(t, echo), here.serve(t, pieces(100_000, 8*time.Second, 25*time.Second))
	client, _ := newClient(t, nil, echoing, "--server", "ws://"+front, "--token-file", tokenFile, "-L", "0:"+slow)
	here.staysUsable(t, client, echoing, slow, 3)
}

// sum reads to the end, answers with the SHA-256 and sends everything back, which it keeps.
func sum(conn net.Conn) {
	all, err := io.ReadAll(conn)
	if err != nil {
		return
	}
	digest := sha256.Sum256(all)
	_, _ = conn.Write(digest[:])
	_, _ = conn.Write(all)
}

// transfer sends size random bytes to a sum and gets them back, and returns the rates in MB/s.
func transfer(t *testing.T, address string, size int64) (up, down float64) {
	t.Helper()
	conn := here.connect(t, address).(*net.TCPConn)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	sent := sha256.New()
	content := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	started := time.Now()
	if _, err := io.CopyBuffer(struct{ io.Writer }{conn}, content, make([]byte, 256<<10)); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, sha256.Size)
	if _, err := io.ReadFull(conn, digest); err != nil {
		t.Fatal(err)
	}
	up = float64(size) / 1e6 / time.Since(started).Seconds()
	if string(digest) != string(sent.Sum(nil)) {
		t.Error("the upload differs")
	}
	started = time.Now()
	received := sha256.New()
	if n, err := io.Copy(received, conn); n != size || err != nil {
		t.Fatalf("%d bytes of %d came back: %v", n, size, err)
	}
	if string(received.Sum(nil)) != string(digest) {
		t.Error("the download differs")
	}
	return up, float64(size) / 1e6 / time.Since(started).Seconds()
}
