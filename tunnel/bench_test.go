package tunnel

import (
	"io"
	"net"
	"testing"
	"time"
)

// The whole way over loopback: application, client, server, target.

func tunnelled(b testing.TB, sealed bool) (app, far *net.TCPConn) {
	key, edit := newKey(b), func(*ClientConfig) {}
	if sealed {
		edit = sealing(key, nil)
	}
	_, server := startServer(b, func(c *ServerConfig) { c.Key = key })
	addr, conns := target(b)
	client := startClient(b, server, both(local(addr), edit))
	app = connect(b, client.listening(b, "local"))
	far = within(b, conns, "connection to the target")
	greet(b, app, far)
	app.SetDeadline(time.Time{})
	far.SetDeadline(time.Time{})
	return app, far
}

func benchmarkBulk(b *testing.B, from, to *net.TCPConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 256<<10)
		for {
			if _, err := to.Read(buf); err != nil {
				return
			}
		}
	}()
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		from.Write(p)
	}
	from.CloseWrite()
	<-done
}

func BenchmarkUpload(b *testing.B) {
	for name, sealed := range kinds {
		b.Run(name, func(b *testing.B) {
			app, far := tunnelled(b, sealed)
			benchmarkBulk(b, app, far)
		})
	}
}

func BenchmarkDownload(b *testing.B) {
	for name, sealed := range kinds {
		b.Run(name, func(b *testing.B) {
			app, far := tunnelled(b, sealed)
			benchmarkBulk(b, far, app)
		})
	}
}

var kinds = map[string]bool{"ws": false, "sealed": true}

func BenchmarkEcho(b *testing.B) {
	app, far := tunnelled(b, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(far, far)
	}()
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		app.Write(p)
		io.ReadFull(app, p)
	}
	app.Close()
	<-done
}
