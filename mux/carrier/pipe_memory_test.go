package carrier_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// However many pipes there are, and whoever does not read, they hold no more than the
// server's memory for pipes and a chunk each way. Each goes on when it is read.
func TestPipeMemory(t *testing.T) {
	const pipes, message, messages, memory, chunk = 12, 64 << 10, 12, 1 << 20, 32 << 10
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		conns := make(chan *carrier.Conn)
		server := carrier.NewServer(carrier.ServerConfig{
			PipeMemory: memory,
			Handler: &carrier.Handler{Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
			}},
		})
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- server.Serve(ctx, network, nil) }()

		d := &carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "127.0.0.1"}, Mode: carrier.ModeHTTP, NetDial: network.Dial}
		var all []*carrier.Conn
		var writing, reading sync.WaitGroup
		for range pipes {
			dialed := make(chan *carrier.Conn, 1)
			go func() {
				c, _, err := d.Dial(t.Context(), nil)
				if err != nil {
					t.Error(err)
				}
				dialed <- c
			}()
			far := <-conns
			all = append(all, far, <-dialed)
		}
		for _, c := range all {
			writing.Go(func() {
				for range messages {
					if err := send(c, make([]byte, message)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		synctest.Wait() // until nothing moves
		const most = memory + 2*pipes*chunk
		used := carrier.PipeMemory(server)
		t.Logf("%d pipes that nobody reads hold %d KiB", pipes, used>>10)
		if used > most || used < memory/2 {
			t.Errorf("%d pipes hold %d bytes, want %d at most", pipes, used, most)
		}

		for _, c := range all {
			reading.Go(func() {
				buf := make([]byte, message)
				for i := range messages {
					if n, err := c.ReadMessage(buf); n != message || err != nil {
						t.Errorf("message %d: %d bytes, %v", i, n, err)
						return
					}
				}
			})
		}
		reading.Wait()
		writing.Wait()
		for _, c := range all {
			c.Abort(nil)
			_ = c.Close("")
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if used := carrier.PipeMemory(server); used != 0 {
			t.Errorf("%d bytes are held by no pipe", used)
		}
	})
}

// Requests whose bodies stand still leave most of the memory to pipes that move.
func TestPipeMemoryOfRequests(t *testing.T) {
	const memory = 1 << 20
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		server := carrier.NewServer(carrier.ServerConfig{PipeMemory: memory, Handler: &carrier.Handler{}})
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- server.Serve(ctx, network, nil) }()
		for i := range 64 {
			conn, err := network.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = io.WriteString(conn, fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nCulvert-Pipe: %s\r\nCulvert-Offset: 0\r\nContent-Length: 9\r\n\r\nx", id(i)))
			if err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if used := carrier.PipeMemory(server); used < memory/4 || used > 3*memory/4 {
			t.Errorf("%d of %d bytes are used", used, memory)
		}
		resp := make(chan string, 1)
		go func() {
			client := &http.Client{Transport: &http.Transport{DialContext: network.Dial, DisableKeepAlives: true}}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader(strings.Repeat("x", 10_000)))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Culvert-Pipe", id(99))
			r.Header.Set("Culvert-Offset", "0")
			answer, err := client.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			answer.Body.Close()
			resp <- answer.Header.Get("Culvert-Offset")
		}()
		if offset := <-resp; offset != "10000" {
			t.Errorf("taken: %q", offset)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if used := carrier.PipeMemory(server); used != 0 {
			t.Errorf("%d bytes are held by nobody", used)
		}
	})
}
