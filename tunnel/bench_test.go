package tunnel

import (
	"io"
	"net"
	"testing"
	"time"
)

// The whole way over loopback: application, client, server, target.

func tunnelled(b testing.TB) (app, far *net.TCPConn) {
	_, server := startServer(b, nil)
	addr, conns := target(b)
	client := startClient(b, server, local(addr))
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
	app, far := tunnelled(b)
	benchmarkBulk(b, app, far)
}

func BenchmarkDownload(b *testing.B) {
	app, far := tunnelled(b)
	benchmarkBulk(b, far, app)
}

func BenchmarkEcho(b *testing.B) {
	app, far := tunnelled(b)
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
