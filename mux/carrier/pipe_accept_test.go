package carrier_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// pipeServer is a server that is asked for pipes by hand.
type pipeServer struct {
	network   *carriertest.Network
	transport *http.Transport
	conns     chan *carrier.Conn
	stop      func()
}

func newPipeServer(t *testing.T, cfg carrier.ServerConfig) *pipeServer {
	s := &pipeServer{network: carriertest.NewNetwork(), conns: make(chan *carrier.Conn, 1)}
	cfg.Handler = &carrier.Handler{
		Path: "/tunnel",
		Authenticate: func(r *http.Request) (carrier.Client, error) {
			switch token, _ := carrier.BearerToken(r); token {
			case "secret":
				return carrier.Client{Identity: "alice"}, nil
			case "password":
				return carrier.Client{Identity: "bob"}, nil
			}
			return carrier.Client{}, errWrongToken
		},
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { s.conns <- c }}, nil
		},
	}
	s.stop = serve(t, s.network, cfg)
	s.transport = &http.Transport{DialContext: s.network.Dial}
	return s
}

func (s *pipeServer) close() {
	s.transport.CloseIdleConnections()
	s.stop()
	s.transport.CloseIdleConnections()
}

// id is a pipe's identifier.
func id(n int) string { return fmt.Sprintf("AAAAAAAAAAAAAAAAAAA%02dA", n) }

// ask makes one request for a pipe of alice's; header has pairs, which may take
// away what is usual.
func (s *pipeServer) ask(t *testing.T, method, body string, header ...string) (status int, offset, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://a/tunnel", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer secret")
	r.Header.Set("Culvert-Pipe", id(1))
	r.Header.Set("Culvert-Offset", "0")
	for i := 0; i < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := s.transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 300 && (resp.Header.Get("Cache-Control") != "no-store, no-transform" || resp.Header.Get("X-Accel-Buffering") != "no") {
		t.Errorf("%s is answered with %v", method, resp.Header)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Culvert-Offset"), string(got)
}

// want makes a request and checks how it is answered.
func (s *pipeServer) want(t *testing.T, status int, offset, method, body string, header ...string) (answer string) {
	t.Helper()
	gotStatus, gotOffset, answer := s.ask(t, method, body, header...)
	if gotStatus != status || gotOffset != offset {
		t.Errorf("%s %.100q %v: %d, offset %q, %q; want %d, %q", method, body, header, gotStatus, gotOffset, answer, status, offset)
	}
	return answer
}

func inPipeServer(t *testing.T, cfg carrier.ServerConfig, f func(t *testing.T, s *pipeServer)) {
	bubble.Test(t, func(t *testing.T) {
		s := newPipeServer(t, cfg)
		defer s.close()
		f(t, s)
	})
}

const (
	innerUpgrade = "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		"Sec-WebSocket-Protocol: culvert.v1\r\nAuthorization: Bearer secret\r\nCulvert-Hello: aGk\r\n\r\n"
	message = "\x82\x82\x00\x00\x00\x00hi" // a client's
)

// The two directions of a pipe, request by request: repetitions are skipped, gaps
// end it.
func TestPipeRequests(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		half, all := len(innerUpgrade)/2, len(innerUpgrade)
		at := func(n int) string { return fmt.Sprint(n) }
		s.want(t, 204, at(half), "POST", innerUpgrade[:half])
		s.want(t, 204, at(all), "POST", innerUpgrade)                                            // the first half again
		s.want(t, 204, at(all-1), "POST", innerUpgrade[half:all-1], "Culvert-Offset", at(half))  // nothing new
		s.want(t, 409, "", "POST", message, "Culvert-Offset", at(all+1))                         // a gap, and yet
		s.want(t, 204, at(all+len(message)), "POST", message, "Culvert-Offset", at(all))         // this goes on
		s.want(t, 204, at(all+len(message)), "POST", "", "Culvert-Offset", at(all+len(message))) // nothing
		s.want(t, 404, "", "POST", message, "Culvert-Offset", at(all), "Culvert-Pipe", id(2))    // there is no such pipe
		s.want(t, 404, "", "GET", "", "Culvert-Offset", "1", "Culvert-Pipe", id(2))              // nor here
		s.want(t, 404, "", "GET", "", "Culvert-Wait", "0", "Authorization", "Bearer password")   // this one is another's
		s.want(t, 404, "", "POST", message, "Culvert-Close", "1", "Authorization", "Bearer password")
		server := <-s.conns
		buf := make([]byte, maxMessage)
		if n, err := server.ReadMessage(buf); err != nil || string(buf[:n]) != "hi" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		answer := s.want(t, 200, "0", "GET", "", "Culvert-Wait", "0")
		if !strings.HasPrefix(answer, "HTTP/1.1 101 ") {
			t.Errorf("answer %q", answer)
		}
		s.want(t, 409, "", "GET", "", "Culvert-Wait", "0") // that was given already
		started := time.Now()
		if s.want(t, 200, at(len(answer)), "GET", "", "Culvert-Wait", "1500", "Culvert-Offset", at(len(answer))) != "" ||
			time.Since(started) != 1500*time.Millisecond {
			t.Errorf("an empty poll took %v", time.Since(started))
		}
		done := read(server)
		s.want(t, 204, at(all+len(message)), "POST", "", "Culvert-Close", "1", "Culvert-Offset", at(all+len(message)))
		if err := <-done; !errors.Is(err, io.EOF) {
			t.Errorf("after the client closed: %v", err)
		}
		s.want(t, 404, "", "GET", "", "Culvert-Wait", "0", "Culvert-Offset", at(len(answer)))
		abort(server)
	})
}

// What the server wrote before it closed is given, and then the end.
func TestPipeEnds(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		s.want(t, 204, "18", "POST", "GET / HTTP/1.0\r\n\r\n")
		answer := s.want(t, 200, "0", "GET", "", "Culvert-Wait", "1000")
		for {
			status, _, more := s.ask(t, "GET", "", "Culvert-Wait", "1000", "Culvert-Offset", fmt.Sprint(len(answer)))
			if status != 200 {
				if status != 410 {
					t.Errorf("at the end: %d", status)
				}
				break
			}
			answer += more
		}
		if !strings.HasPrefix(answer, "HTTP/1.0 404 ") || !strings.HasSuffix(answer, "404 page not found\n") {
			t.Errorf("answer %q", answer)
		}
		s.want(t, 404, "", "GET", "", "Culvert-Wait", "1000", "Culvert-Offset", fmt.Sprint(len(answer)))
	})
}

// A pipe whose carrier has ended at the server takes nothing more, and says so whatever
// the body is.
func TestPipeEndedAtTheServer(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		end := fmt.Sprint(len(innerUpgrade))
		s.want(t, 204, end, "POST", innerUpgrade)
		server := <-s.conns
		server.Abort(nil)
		_ = server.Close("")
		s.want(t, 410, "", "POST", message, "Culvert-Offset", end)
		s.want(t, 410, "", "POST", "", "Culvert-Offset", end)
		s.want(t, 410, "", "POST", innerUpgrade)
		s.want(t, 410, "", "GET", "")
		s.want(t, 404, "", "POST", "", "Culvert-Offset", end)
	})
}

// Nothing that is not exactly a pipe's request gets another answer than a
// stranger's, and no pipe is made inside of another.
func TestPipeStrangers(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		for _, header := range [][]string{
			{"Culvert-Pipe", ""}, {"Culvert-Pipe", "A"}, {"Culvert-Pipe", id(1) + "A"}, {"Culvert-Pipe", "AAAAAAAAAAAAAAAAAAAAAB"},
			{"Culvert-Pipe", "AAAAAAAAAAAAAAAAAAAA=A"}, {"Culvert-Pipe", "Probe"},
			{"Culvert-Offset", ""}, {"Culvert-Offset", "-1"}, {"Culvert-Offset", "+1"}, {"Culvert-Offset", "00"}, {"Culvert-Offset", "0x1"},
			{"Culvert-Offset", "9223372036854775808"}, {"Culvert-Offset", "1 "}, {"Culvert-Close", "0"}, {"Culvert-Wait", "1"},
		} {
			if header[1] == "1 " {
				continue // which net/http trims
			}
			if answer := s.want(t, 404, "", "POST", "x", header...); answer != "404 page not found\n" {
				t.Errorf("%v: %q", header, answer)
			}
		}
		for _, header := range [][]string{{"Culvert-Wait", "30001"}, {"Culvert-Wait", "-1"}, {"Culvert-Wait", "1.5"}, {"Culvert-Close", "1"}} {
			s.want(t, 404, "", "GET", "", header...)
		}
		s.want(t, 404, "", "PUT", "x")
		s.want(t, 401, "", "POST", "x", "Authorization", "")
		s.want(t, 401, "", "GET", "", "Authorization", "Bearer guess", "Culvert-Pipe", "probe")
		s.want(t, 403, "", "POST", "x", "Origin", "http://a")

		inner := "GET /tunnel HTTP/1.0\r\nAuthorization: Bearer secret\r\nCulvert-Pipe: " + id(2) + "\r\nCulvert-Offset: 0\r\n\r\n"
		s.want(t, 204, fmt.Sprint(len(inner)), "POST", inner)
		if answer := s.want(t, 200, "0", "GET", "", "Culvert-Wait", "1000"); !strings.HasPrefix(answer, "HTTP/1.0 404 ") {
			t.Errorf("a pipe in a pipe: %q", answer)
		}
	})
}

// A body may not be larger than agreed.
func TestPipeBodyLimit(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		s.want(t, 204, fmt.Sprint(len(innerUpgrade)), "POST", innerUpgrade)
		server := <-s.conns
		read(server)
		frame := "\x82\xfe\xff\xff\x00\x00\x00\x00" + strings.Repeat("x", 65535)
		s.want(t, 413, "", "POST", strings.Repeat(frame, 17), "Culvert-Offset", fmt.Sprint(len(innerUpgrade)))
		abort(server)
	})
}

// A client that asks for nothing any more loses its pipe.
func TestPipeForgotten(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{PipeIdle: 7 * time.Second}, func(t *testing.T, s *pipeServer) {
		s.want(t, 204, fmt.Sprint(len(innerUpgrade)), "POST", innerUpgrade)
		server := <-s.conns
		started := time.Now()
		err := <-read(server)
		if took := time.Since(started); took != 7*time.Second || !strings.Contains(err.Error(), "does not ask any more") {
			t.Errorf("%v after %v", err, took)
		}
		s.want(t, 404, "", "GET", "", "Culvert-Wait", "0", "Culvert-Offset", "1")
		abort(server)
	})
}

// One that never says what it is for is closed as any connection is.
func TestPipeHandshakeTimeout(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		s.want(t, 204, "3", "POST", "GET")
		started := time.Now()
		for offset, status := 0, 200; status != 410; {
			var answer string
			status, _, answer = s.ask(t, "GET", "", "Culvert-Wait", "30000", "Culvert-Offset", fmt.Sprint(offset))
			offset += len(answer)
			if took := time.Since(started); took > 11*time.Second {
				t.Fatalf("status %d after %v", status, took)
			}
		}
	})
}

// The pipes of an identity, and all of them, are bounded.
func TestPipeLimits(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{MaxPipes: 3, MaxPipesPerIdentity: 2}, func(t *testing.T, s *pipeServer) {
		open := func(status int, n int, token string) {
			t.Helper()
			offset := ""
			if status == 204 {
				offset = "1"
			}
			s.want(t, status, offset, "POST", "G", "Culvert-Pipe", id(n), "Authorization", "Bearer "+token)
		}
		open(204, 10, "secret")
		open(204, 11, "secret")
		open(503, 12, "secret")
		open(204, 13, "password")
		open(503, 14, "password")
		open(204, 10, "secret") // which there is already
		after(45 * time.Second)
		open(204, 14, "password")
		open(204, 15, "password")
	})
}

// When the server ends, so do its pipes, and the carriers on them.
func TestPipeServerStops(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newPipeServer(t, carrier.ServerConfig{})
		d := carrier.Dialer{
			URL: &url.URL{Scheme: "ws", Host: "a", Path: "/tunnel"}, NetDial: s.network.Dial,
			Credential: token("secret"), AllowPlaintext: true, Mode: carrier.ModeHTTP,
		}
		client, _, err := d.Dial(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		server := <-s.conns
		clientDone, serverDone := read(client), read(server)
		after(time.Second)
		started := time.Now()
		s.close()
		<-serverDone
		<-clientDone
		if took := time.Since(started); took > time.Second {
			t.Errorf("it took %v", took)
		}
		abort(client, server)
	})
}

// Clients over pipes do not count as connections without a credential, also when
// they all come from one address.
func TestPipesAreNotUnauthenticated(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log logged
		s := newPipeServer(t, carrier.ServerConfig{
			MaxUnauthenticatedPerAddress: 10, MaxUnauthenticated: 8, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		defer s.close()
		d := carrier.Dialer{
			URL: &url.URL{Scheme: "ws", Host: "127.0.0.1", Path: "/tunnel"}, NetDial: s.network.Dial,
			Credential: token("secret"), Mode: carrier.ModeHTTP,
		}
		for range 20 {
			client, _, err := d.Dial(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			server := <-s.conns
			defer abort(client, server)
			exchange(t, client, server, 1000)
			exchange(t, server, client, 1000)
			read(client)
			read(server)
			after(time.Second)
		}
		if log.String() != "" {
			t.Errorf("logged %s", log.String())
		}
	})
}

// A poll may wait for longer than the server gives other answers.
func TestPipePollOutlastsTimeouts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{}, HandshakeTimeout: 300 * time.Millisecond})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nCulvert-Pipe: "+id(1)+"\r\nCulvert-Offset: 0\r\nCulvert-Wait: 600\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 && resp.StatusCode != 410 { // the pipe's own time-out may be first
		t.Error(resp.Status)
	}
}

// What a POST is answered with arrives, also if its body took longer than the server
// gives other requests.
func TestPipeAnswersSlowBodies(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{}, HandshakeTimeout: 100 * time.Millisecond})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nCulvert-Pipe: "+id(1)+"\r\nCulvert-Offset: 0\r\nContent-Length: 2\r\n\r\nG")
	after(300 * time.Millisecond) // the pipe's own time-out is over as well
	_, _ = io.WriteString(conn, "E")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 410 {
		t.Error(resp.Status)
	}
}

// The requests of one pipe at a time are bounded, since their connections are not.
func TestPipeRequestLimit(t *testing.T) {
	inPipeServer(t, carrier.ServerConfig{}, func(t *testing.T, s *pipeServer) {
		for i := range 17 {
			conn, err := s.network.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST /tunnel HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nCulvert-Pipe: %s\r\n"+
				"Culvert-Offset: 0\r\nContent-Length: 1\r\n\r\n", id(1))
			synctest.Wait()
			if i < 16 {
				continue
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 503 || resp.Header.Get("Culvert-Refusal") != "limit" {
				t.Errorf("%s, %v", resp.Status, resp.Header)
			}
		}
	})
}
