package test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/xtaci/smux"

	"culvert/auth"
	"culvert/tunnel"
)

// One bulk stream over ws:// on loopback, through client and server in this process, against the
// obvious way to build such a tunnel: smux over websocket.NetConn, both with their default settings.
// The two take turns, so that both see the same machine:
//
//	go test -run '^$' -bench . ./test
func BenchmarkUpload(b *testing.B)   { compare(b, -bulk) }
func BenchmarkDownload(b *testing.B) { compare(b, bulk) }

const bulk = 256 << 20 // bytes of one transfer

func compare(b *testing.B, size int64) {
	target := serve(b, stream)
	stacks := []struct {
		name     string
		entrance string
		took     time.Duration
	}{
		{name: "culvert", entrance: startCulvert(b, target)},
		{name: "smux", entrance: startPlain(b, target)},
	}
	buf := make([]byte, 256<<10)
	transfer := func(entrance string, size int64) time.Duration {
		conn := connect(b, entrance)
		defer func() { _ = conn.Close() }()
		started := time.Now()
		if err := binary.Write(conn, binary.BigEndian, size); err != nil {
			b.Fatal(err)
		}
		if size < 0 {
			if err := transmit(conn, buf, -size); err != nil {
				b.Fatal(err)
			}
			size = 1 // the target's word that it has everything
		}
		if err := receive(conn, buf, size); err != nil {
			b.Fatal(err)
		}
		return time.Since(started)
	}
	for i := range stacks {
		transfer(stacks[i].entrance, size/8) // warms up
	}
	for b.Loop() {
		for i := range stacks {
			stacks[i].took += transfer(stacks[i].entrance, size)
		}
	}
	for _, s := range stacks {
		b.ReportMetric(float64(b.N)*bulk/1e6/s.took.Seconds(), s.name+"-MB/s")
	}
	b.ReportMetric(float64(stacks[1].took)/float64(stacks[0].took), "ratio")
	b.ReportMetric(0, "ns/op") // of both together: says nothing
}

// stream is a target that takes or gives as many bytes as it is told.
func stream(conn *net.TCPConn) {
	var size int64
	if binary.Read(conn, binary.BigEndian, &size) != nil {
		return
	}
	buf := make([]byte, 256<<10)
	if size > 0 {
		_ = transmit(conn, buf, size) // the other side notices
		return
	}
	if receive(conn, buf, -size) == nil {
		_, _ = conn.Write(buf[:1])
	}
}

func transmit(conn net.Conn, buf []byte, size int64) error {
	for size > 0 {
		n, err := conn.Write(buf[:min(size, int64(len(buf)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

func receive(conn net.Conn, buf []byte, size int64) error {
	for size > 0 {
		n, err := conn.Read(buf)
		size -= int64(n)
		if err != nil && size > 0 {
			return err
		}
	}
	return nil
}

// startCulvert runs both agents with their default settings and returns where the client listens.
func startCulvert(b *testing.B, target string) string {
	b.Helper()
	server, err := tunnel.NewServer(tunnel.ServerConfig{Listen: "127.0.0.1:0", Guard: auth.NewGuard(auth.Everybody())})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		running.Wait()
	})
	run := func(agent func(context.Context) error) {
		running.Go(func() {
			if err := agent(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	run(server.Run)
	address, err := server.Addr(ctx)
	if err != nil {
		b.Fatal(err)
	}
	forward := tunnel.Forward{Bind: "127.0.0.1", Target: target}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	entrance := listener.Addr().(*net.TCPAddr)
	forward.Port = entrance.Port
	_ = listener.Close()
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Servers: []*url.URL{{Scheme: "ws", Host: address.String(), Path: "/"}},
		Local:   []tunnel.Forward{forward},
	})
	if err != nil {
		b.Fatal(err)
	}
	run(client.Run)
	waitFor(b, "the client", func() bool {
		conn, err := net.Dial("tcp", entrance.String())
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return entrance.String()
}

// startPlain runs a tunnel made of nothing but the two libraries and returns where it listens.
func startPlain(b *testing.B, target string) string {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	relay := func(a, z io.ReadWriteCloser) {
		var directions sync.WaitGroup
		for _, pair := range [][2]io.ReadWriteCloser{{a, z}, {z, a}} {
			directions.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = a.Close()
				_ = z.Close()
			})
		}
		directions.Wait()
	}

	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			b.Error(err)
			return
		}
		session, err := smux.Server(websocket.NetConn(ctx, ws, websocket.MessageBinary), smux.DefaultConfig())
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = session.Close() }()
		for {
			in, err := session.AcceptStream()
			if err != nil {
				return
			}
			running.Go(func() {
				out, err := net.Dial("tcp", target)
				if err != nil {
					_ = in.Close()
					return
				}
				relay(in, out)
			})
		}
	})}
	outer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	running.Go(func() { _ = server.Serve(outer) })

	ws, response, err := websocket.Dial(ctx, "ws://"+outer.Addr().String(), nil)
	if err != nil {
		b.Fatal(err)
	}
	if response.Body != nil {
		_ = response.Body.Close()
	}
	session, err := smux.Client(websocket.NetConn(ctx, ws, websocket.MessageBinary), smux.DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	entrance, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	running.Go(func() {
		for {
			in, err := entrance.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				out, err := session.OpenStream()
				if err != nil {
					_ = in.Close()
					return
				}
				relay(in, out)
			})
		}
	})
	b.Cleanup(func() {
		_ = entrance.Close()
		_ = session.Close()
		cancel()
		_ = server.Close()
		running.Wait()
	})
	return entrance.Addr().String()
}
