package carrier_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/coder/websocket"

	"culvert/mux/carrier/carriertest"
)

var benchSizes = []int{16, 32 << 10, 128 << 10}

// BenchmarkMessages moves messages one way over loopback, both ends in this
// process. The second half is the same bytes through websocket.NetConn.
func BenchmarkMessages(b *testing.B) {
	for _, scheme := range []string{"ws", "wss", "http", "sealed"} {
		for _, way := range []string{"up", "down"} {
			for _, size := range benchSizes {
				b.Run(fmt.Sprintf("%s/%s/%d", scheme, way, size), func(b *testing.B) {
					client, server := carriertest.Pair(b, carriertest.Config{TCP: true, TLS: scheme == "wss", HTTP: scheme == "http", Sealed: scheme == "sealed"})
					// The idle side must read too; nothing comes but control frames.
					from, to := client, server
					if way == "down" {
						from, to = server, client
					}
					go func() { _, _ = from.ReadMessage(make([]byte, 1)) }()
					benchmarkMessages(b, size, func(p []byte) error { return send(from, p) }, to.ReadMessage)
				})
			}
		}
	}
}

// benchmarkMessages writes b.N messages and waits until they were read.
func benchmarkMessages(b *testing.B, size int, write func([]byte) error, read func([]byte) (int, error)) {
	message := make([]byte, size)
	buf := make([]byte, 128<<10+64)
	if err := write(message); err != nil { // buffers grow once
		b.Fatal(err)
	}
	if _, err := read(buf); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, 1)
	go func() {
		for range b.N {
			if _, err := read(buf); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range b.N {
		if err := write(message); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
}

// BenchmarkEcho is one message at a time, there and back.
func BenchmarkEcho(b *testing.B) {
	client, server := carriertest.Pair(b, carriertest.Config{TCP: true})
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := server.ReadMessage(buf)
			if err != nil {
				return
			}
			if err := send(server, buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if err := send(client, buf[:16]); err != nil {
			b.Fatal(err)
		}
		if _, err := client.ReadMessage(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNetConn(b *testing.B) {
	for _, way := range []string{"up", "down"} {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("ws/%s/%d", way, size), func(b *testing.B) {
				client, server := netConnPair(b)
				from, to := client, server
				if way == "down" {
					from, to = server, client
				}
				benchmarkMessages(b, size,
					func(p []byte) error {
						_, err := from.Write(p)
						return err
					},
					func(p []byte) (int, error) { return io.ReadFull(to, p[:size]) })
			})
		}
	}
}

func netConnPair(b *testing.B) (client, server net.Conn) {
	accepted := make(chan net.Conn, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			b.Error(err)
			return
		}
		accepted <- websocket.NetConn(context.Background(), c, websocket.MessageBinary)
	}))
	b.Cleanup(srv.Close)
	ws, _, err := websocket.Dial(b.Context(), srv.URL, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ws.CloseNow() })
	server = <-accepted
	return websocket.NetConn(context.Background(), ws, websocket.MessageBinary), server
}
