package carrier

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"
)

func TestHeartbeatHeader(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  time.Duration
	}{
		{"", 0},
		{"45", 45 * time.Second},
		{"-1", 0},
		{"1e3", 0},
		{"7201", maxHeartbeat},
		{"99999999999999999999", 0},
	} {
		if got := decodeHeartbeat(http.Header{heartbeatHeader: {tt.value}}); got != tt.want {
			t.Errorf("%q is %s, want %s", tt.value, got, tt.want)
		}
	}
	if got := encodeHeartbeat(44*time.Second + 1); got != "45" {
		t.Errorf("encoded as %q, want 45", got)
	}
}

// A client that leaves the carrier idle for longer is not pinged meanwhile.
func TestHeartbeatOfClient(t *testing.T) {
	for _, tt := range []struct{ client, longest, server, want time.Duration }{
		{0, 0, 5 * time.Second, 5 * time.Second},
		{time.Second, 0, 30 * time.Second, 30 * time.Second},
		{45 * time.Second, 0, 30 * time.Second, 45 * time.Second},
		{45 * time.Second, 0, time.Minute, time.Minute},
		{time.Second, 45 * time.Second, 30 * time.Second, 45 * time.Second},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		attached := make(chan *Conn, 1)
		h := &Handler{
			Admit: func(Request) (Admission, error) {
				return Admission{Attach: func(c *Conn) { attached <- c }}, nil
			},
			Options: Options{Heartbeat: tt.server},
		}
		var serving sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		serving.Go(func() { _ = NewServer(ServerConfig{Handler: h}).Serve(ctx, ln, nil) })
		d := Dialer{URL: &url.URL{Scheme: "ws", Host: ln.Addr().String()}, MaxHeartbeat: tt.longest, Options: Options{Heartbeat: tt.client}}
		c, _, err := d.Dial(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		far := <-attached
		if got := far.opt.Heartbeat; got != tt.want {
			t.Errorf("client %s to %s, server %s: the server's heartbeat is %s, want %s", tt.client, tt.longest, tt.server, got, tt.want)
		}
		for _, c := range []*Conn{c, far} {
			c.Abort(nil)
			_ = c.Close("")
		}
		cancel()
		serving.Wait()
	}
}
