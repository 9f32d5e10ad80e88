package carrier_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// rawConn is a connection whose client writes requests by hand.
type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func (s *pipeServer) raw(t *testing.T) rawConn {
	t.Helper()
	conn, err := s.network.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	return rawConn{conn, bufio.NewReader(conn)}
}

// send makes a request with this line and header. What the server has closed takes none.
func (c rawConn) send(token, line string, header ...string) {
	_, _ = fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", line, token, strings.Join(header, "\r\n"))
}

// isOpen reports whether the server has the connection open, whatever it answered.
func (c rawConn) isOpen() bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := io.Copy(io.Discard, c.r)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// Whoever has a good credential holds no more connections than anybody else by asking for
// a probe, which is no pipe, and by being idle after a pipe's request.
func TestIdleConnectionsWithACredentialAreBounded(t *testing.T) {
	const total, perAddr, many = 16, 8, 60
	for name, header := range map[string][]string{
		"probe": {"Culvert-Pipe: probe"},
		"pipe":  {"Culvert-Pipe: " + id(1), "Culvert-Offset: 0", "Culvert-Wait: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := carrier.ServerConfig{MaxUnauthenticated: total, MaxUnauthenticatedPerAddress: perAddr}
			inPipeServer(t, cfg, func(t *testing.T, s *pipeServer) {
				var conns []rawConn
				for range many {
					c := s.raw(t)
					defer c.Close()
					conns = append(conns, c)
					for _, c := range conns[max(0, len(conns)-20):] { // which keeps them from being idle for long
						c.send("secret", "GET /tunnel", header...)
					}
					after(time.Second)
				}
				open := 0
				for _, c := range conns {
					if c.isOpen() {
						open++
					}
				}
				if open > total {
					t.Errorf("%d of %d connections are open", open, many)
				}
				if name == "pipe" { // and makes room for strangers
					conn := s.raw(t)
					defer conn.Close()
					notFound(t, conn)
				}
			})
		})
	}
}

// The connections that are busy for an identity are bounded, by requests of pipes and
// carriers together. Another identity is not concerned.
func TestBusyConnectionsAreBounded(t *testing.T) {
	const most = 4 // for one pipe
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var carriers []*carrier.Conn
		network := carriertest.NewNetwork()
		handler := &carrier.Handler{
			Path: "/tunnel",
			Authenticate: func(r *http.Request) (carrier.Client, error) {
				token, _ := carrier.BearerToken(r)
				return carrier.Client{Identity: token}, nil
			},
			Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Attach: func(c *carrier.Conn) {
					mu.Lock()
					defer mu.Unlock()
					carriers = append(carriers, c)
				}}, nil
			},
		}
		stop := serve(t, network, carrier.ServerConfig{Handler: handler, MaxPipesPerIdentity: 1})
		defer stop()
		s := &pipeServer{network: network}
		upgrade := func(token string) (c rawConn, status int) {
			c = s.raw(t)
			c.send(token, "GET /tunnel", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: culvert.v1", "Culvert-Hello: aGk")
			return c, c.answer(t)
		}
		var held []rawConn
		defer func() {
			synctest.Wait()
			mu.Lock()
			abort(carriers...)
			mu.Unlock()
			for _, c := range held {
				c.Close()
			}
		}()
		for i := range most {
			var c rawConn
			status := http.StatusOK
			if i%2 == 0 {
				c, status = upgrade("alice")
			} else {
				c = s.raw(t)
				c.send("alice", "GET /tunnel", "Culvert-Pipe: "+id(1), "Culvert-Offset: 0", "Culvert-Wait: 60")
			}
			synctest.Wait()
			if status != http.StatusSwitchingProtocols && i%2 == 0 {
				t.Errorf("connection %d is answered %d", i, status)
			}
			held = append(held, c)
		}
		tooMany := func() {
			t.Helper()
			c, status := upgrade("alice")
			if status != http.StatusServiceUnavailable {
				t.Errorf("one carrier more is answered %d", status)
			}
			c.Close()
			c = s.raw(t)
			c.send("alice", "GET /tunnel", "Culvert-Pipe: "+id(1), "Culvert-Offset: 0", "Culvert-Wait: 1")
			if status := c.answer(t); status != http.StatusServiceUnavailable {
				t.Errorf("one pipe's request more is answered %d", status)
			}
			c.Close()
		}
		tooMany()
		c, status := upgrade("bob")
		if status != http.StatusSwitchingProtocols {
			t.Errorf("another identity is answered %d", status)
		}
		held = append(held, c)

		// A carrier that ends makes room for one.
		mu.Lock()
		abort(carriers[0])
		mu.Unlock()
		synctest.Wait()
		c, status = upgrade("alice")
		if status != http.StatusSwitchingProtocols {
			t.Errorf("after one has ended: %d", status)
		}
		held = append(held, c)
		tooMany()
	})
}

// answer is the status of the server's answer.
func (c rawConn) answer(t *testing.T) int {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// Sealed carriers count for their identity as well, once they are confirmed.
func TestSealedConnectionsAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSealedServer(t, func(_ *sealedServer, cfg *carrier.ServerConfig) { cfg.MaxPipesPerIdentity = 1 })
		d := s.dialer(carriertest.Key(t))
		for range 6 {
			c, _, err := d.Dial(t.Context(), []byte("hi"))
			if err != nil {
				t.Fatal(err)
			}
			defer abort(c)
		}
		synctest.Wait()
		if n := len(s.attached); n != 4 {
			t.Errorf("%d carriers, want 4", n)
		}
		for len(s.attached) > 0 {
			abort(<-s.attached)
		}
	})
}
