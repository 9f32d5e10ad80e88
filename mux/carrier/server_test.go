package carrier_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// serve runs a Server until the test is over, and then fails unless it ends well.
func serve(t *testing.T, ln net.Listener, cfg carrier.ServerConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- carrier.NewServer(cfg).Serve(ctx, ln, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// logged is a log that can be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func notFound(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Fatal(resp.Status)
	}
}

// closed waits until the other end has closed conn.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// What is not a carrier 10 s after it came is closed, whatever it does.
func TestServerTimeouts(t *testing.T) {
	slowly := func(piece string) func(net.Conn) {
		return func(conn net.Conn) {
			for {
				if _, err := io.WriteString(conn, piece); err != nil {
					return
				}
				after(time.Second)
			}
		}
	}
	tests := map[string]func(net.Conn){
		"silence":     func(net.Conn) {},
		"slow line":   slowly("G"),
		"slow header": func(conn net.Conn) { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n"); slowly("X: y\r\n")(conn) },
		"slow body": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
			slowly("x")(conn)
		},
		"idle after it": func(conn net.Conn) { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") },
	}
	for name, attack := range tests {
		for _, secure := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					network := carriertest.NewNetwork()
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan error, 1)
					var cfg *tls.Config
					if secure {
						cert, _ := carriertest.Certificate(t)
						cfg = &tls.Config{Certificates: []tls.Certificate{cert}}
					}
					go func() {
						done <- carrier.NewServer(carrier.ServerConfig{Handler: http.NotFoundHandler()}).Serve(ctx, network, cfg)
					}()
					conn, err := network.Dial(ctx, "", "")
					if err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					var attacker sync.WaitGroup
					attacker.Go(func() { attack(conn) })
					_, _ = io.Copy(io.Discard, conn)
					if took := time.Since(start); took > 11*time.Second {
						t.Errorf("closed after %v", took)
					}
					conn.Close()
					attacker.Wait()
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A client that asks and does not read the answers is closed too, and the limit
// can be another one.
func TestServerAnswerTimeout(t *testing.T) {
	for _, limit := range []time.Duration{0, 3 * time.Second} {
		bubble.Test(t, func(t *testing.T) {
			network := carriertest.NewNetwork()
			serve(t, network, carrier.ServerConfig{Handler: http.NotFoundHandler(), HandshakeTimeout: limit})
			conn, err := network.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			start := time.Now()
			for err == nil {
				_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			}
			want := cmp.Or(limit, 10*time.Second)
			if took := time.Since(start); took != want {
				t.Errorf("closed after %v, want %v", took, want)
			}
		})
	}
}

func TestServerHeaderLimit(t *testing.T) {
	for _, tt := range []struct{ limit, size, status int }{
		{0, 31 << 10, http.StatusNotFound},
		{0, 32 << 10, http.StatusRequestHeaderFieldsTooLarge},
		{8 << 10, 7 << 10, http.StatusNotFound},
		{8 << 10, 8 << 10, http.StatusRequestHeaderFieldsTooLarge},
		{64 << 10, 63 << 10, http.StatusNotFound},
		{64 << 10, 64 << 10, http.StatusRequestHeaderFieldsTooLarge},
	} {
		network := carriertest.NewNetwork()
		serve(t, network, carrier.ServerConfig{Handler: http.NotFoundHandler(), MaxHeaderBytes: tt.limit})
		conn, err := network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", tt.size)+"\r\n\r\n")
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("limit %d: %d bytes are answered %s", tt.limit, tt.size, resp.Status)
		}
	}
}

// HTTP/1.1 over TLS 1.2 or newer, whatever the caller's config says and the
// client asks for, and nothing in the log of who asks for something else.
func TestServerSpeaks(t *testing.T) {
	var log logged
	cert, pool := carriertest.Certificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, NextProtos: []string{"h2"}}
	network := carriertest.NewNetwork()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	srv := carrier.NewServer(carrier.ServerConfig{
		Handler: http.NotFoundHandler(),
		Logger:  slog.New(slog.NewTextHandler(&log, nil)),
	})
	go func() { done <- srv.Serve(ctx, network, config) }()
	for _, tt := range []struct {
		version uint16
		ok      bool
	}{{tls.VersionTLS11, false}, {tls.VersionTLS12, true}, {tls.VersionTLS13, true}} {
		conn, err := network.Dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		secured := tls.Client(conn, &tls.Config{
			RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"},
			MinVersion: tt.version, MaxVersion: tt.version,
		})
		err = secured.HandshakeContext(ctx)
		if got := secured.ConnectionState().NegotiatedProtocol; (err == nil) != tt.ok || tt.ok && got != "http/1.1" {
			t.Errorf("%s: %q, %v", tls.VersionName(tt.version), got, err)
		}
		conn.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if config.MinVersion != tls.VersionTLS10 || config.NextProtos[0] != "h2" {
		t.Error("the caller's config was changed")
	}
	if log.String() != "" {
		t.Errorf("logged %s", log.String())
	}

	network = carriertest.NewNetwork()
	serve(t, network, carrier.ServerConfig{Handler: http.NotFoundHandler()})
	conn, err := network.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	}()
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 4") && !strings.HasPrefix(line, "HTTP/1.1 5") {
		t.Errorf("HTTP/2 is answered %q, %v", line, err)
	}
}

// Serve does not end before the handlers that made carriers have.
func TestServerWaitsForHandlers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		conns, ended := make(chan *carrier.Conn), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(ended)
			_ = carrier.NewServer(carrier.ServerConfig{Handler: &carrier.Handler{
				Admit: func(carrier.Request) (carrier.Admission, error) {
					return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
				},
			}}).Serve(ctx, network, nil)
		}()
		client, _, err := (&carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "localhost"}, NetDial: network.Dial}).Dial(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("ended before the handler")
		default:
		}
		server := <-conns
		<-ended
		for _, c := range []*carrier.Conn{client, server} {
			c.Abort(nil)
			_ = c.Close("")
		}
	})
}

// Serve ends with its context, and with it what is no carrier; a carrier lives on.
func TestServerStops(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan *carrier.Conn, 1)
	stop := serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
		},
	}})
	client, _, err := (&carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: ln.Addr().String()}}).Dial(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := <-conns
	var idle []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	notFound(t, idle[0])
	_, _ = io.WriteString(idle[1], "GET / HTTP")

	stop()
	for _, conn := range idle {
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		conn.Close()
		t.Error("still listening")
	}
	exchange(t, client, server, 1000)
	exchange(t, server, client, 1000)
	for _, c := range []*carrier.Conn{client, server} {
		c.Abort(nil)
		_ = c.Close("")
	}
}

// Serve reports that it cannot accept.
func TestServerListenerFails(t *testing.T) {
	network := carriertest.NewNetwork()
	network.Close()
	err := carrier.NewServer(carrier.ServerConfig{Handler: http.NotFoundHandler()}).Serve(t.Context(), network, nil)
	if !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// Connections that do nothing fill up their own address's share, and are closed
// for newer ones when all is full; a good client gets in all the same, and what
// was upgraded does not count.
func TestServerLimits(t *testing.T) {
	network := carriertest.NewNetwork()
	var log logged
	conns := make(chan *carrier.Conn, 10)
	serve(t, network, carrier.ServerConfig{
		Handler: &carrier.Handler{Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
		}},
		MaxUnauthenticated:           4,
		MaxUnauthenticatedPerAddress: 2,
		Logger:                       slog.New(slog.NewTextHandler(&log, nil)),
	})
	from := func(ip string) net.Conn {
		conn, far := carriertest.NewPath().Ends()
		if err := network.Connect(t.Context(), fromAddr{far, net.ParseIP(ip)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	d := carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "localhost"}, NetDial: network.Dial}
	for range 5 { // one after the other, each upgraded
		c, _, err := d.Dial(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*carrier.Conn{c, <-conns} {
			defer c.Close("")
			defer c.Abort(nil)
		}
	}

	first, second := from("192.0.2.2"), from("192.0.2.2")
	notFound(t, second) // and so both were accepted
	closed(t, from("192.0.2.2"))
	if s := log.String(); !strings.Contains(s, "limit=unauthenticated_per_address") || !strings.Contains(s, "remote=192.0.2.2:80") {
		t.Errorf("logged %q", s)
	}

	third, fourth := from("192.0.2.3"), from("192.0.2.3")
	notFound(t, third)
	notFound(t, fourth)
	fifth := from("192.0.2.4")
	closed(t, first) // which had waited longest
	notFound(t, fifth)
	c, _, err := d.Dial(t.Context(), nil) // makes room for itself
	if err != nil {
		t.Fatal(err)
	}
	closed(t, second)
	for _, c := range []*carrier.Conn{c, <-conns} {
		defer c.Close("")
		defer c.Abort(nil)
	}
	if n := strings.Count(log.String(), "limit reached"); n != 1 {
		t.Errorf("logged %d lines: %s", n, log.String())
	}
}

// The limits that nobody has set: 64 for an address, 1024 in all.
func TestServerDefaultLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		var log logged
		start := time.Now()
		serve(t, network, carrier.ServerConfig{
			Handler: http.NotFoundHandler(),
			Logger:  slog.New(slog.NewTextHandler(&log, nil)),
		})
		var conns []net.Conn
		from := func(ip net.IP) net.Conn {
			conn, far := carriertest.NewPath().Ends()
			if err := network.Connect(t.Context(), fromAddr{far, ip}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			conns = append(conns, conn)
			return conn
		}
		for i := range 16 {
			for range 64 {
				from(net.IPv4(192, 0, 2, byte(i)))
			}
		}
		for _, i := range []int{0, len(conns) - 1} {
			notFound(t, conns[i])
		}
		if log.String() != "" {
			t.Errorf("logged %s", log.String())
		}
		notFound(t, from(net.IPv4(198, 51, 100, 1)))
		closed(t, conns[0]) // to make room
		if s := log.String(); !strings.Contains(s, "limit=unauthenticated remote=192.0.2.0:80") {
			t.Errorf("logged %q", s)
		}
		closed(t, from(net.IPv4(192, 0, 2, 1)))
		if took := time.Since(start); took != 0 {
			t.Errorf("closed after %v", took)
		}
	})
}

type fromAddr struct {
	net.Conn
	ip net.IP
}

func (c fromAddr) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.ip, Port: 80} }
