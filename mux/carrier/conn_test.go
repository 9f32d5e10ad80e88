package carrier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

const maxMessage = 128<<10 + 64

// exchange sends one message of size bytes and checks it.
func exchange(t *testing.T, from, to *carrier.Conn, size int) {
	t.Helper()
	message := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)})
	_, _ = random.Read(message)
	want := bytes.Clone(message)
	sent := make(chan error, 1)
	go func() { sent <- send(from, message) }()
	buf := make([]byte, maxMessage)
	n, err := to.ReadMessage(buf)
	if err != nil {
		t.Fatalf("%d bytes: %v", size, err)
	}
	if err := <-sent; err != nil {
		t.Fatalf("%d bytes: %v", size, err)
	}
	if !bytes.Equal(buf[:n], want) {
		t.Fatalf("%d bytes: got %d others", size, n)
	}
	if !bytes.Equal(message, want) {
		t.Fatalf("%d bytes: the sender's were changed", size)
	}
}

func TestMessages(t *testing.T) {
	sizes := []int{0, 1, 7, 125, 126, 127, 245, 246, 247, 248, 250, 256, 257, 4082, 4083, 4096, 16<<10 - 1, 16 << 10, 16<<10 + 1,
		65535, 65536, 128 << 10, maxMessage - 1, maxMessage}
	for _, cfg := range []carriertest.Config{
		{}, {TLS: true}, {TCP: true}, {TCP: true, TLS: true}, {HTTP: true}, {HTTP: true, TCP: true, TLS: true},
	} {
		t.Run(fmt.Sprintf("tcp=%t,tls=%t,http=%t", cfg.TCP, cfg.TLS, cfg.HTTP), func(t *testing.T) {
			client, server := carriertest.Pair(t, cfg)
			if client.Secure() != cfg.TLS || server.Secure() != cfg.TLS {
				t.Errorf("secure: %t and %t", client.Secure(), server.Secure())
			}
			for _, c := range []*carrier.Conn{client, server} {
				if (c.Mode() == carrier.ModeHTTP) != cfg.HTTP {
					t.Errorf("mode %q", c.Mode())
				}
			}
			for _, size := range sizes {
				exchange(t, client, server, size)
				exchange(t, server, client, size)
			}
		})
	}
}

// A message leaves with one system call, whatever its size and with TLS too.
// (Without TLS, the header and the payload of a large one are two pieces of one
// writev, which a path in memory sees as two.)
func TestMessageIsOneWrite(t *testing.T) {
	for _, secure := range []bool{false, true} {
		path := carriertest.NewPath()
		client, server := carriertest.Pair(t, carriertest.Config{Path: path, TLS: secure})
		for _, size := range []int{1, 1000, 5000, 128 << 10} {
			up, down := path.Writes()
			exchange(t, client, server, size)
			exchange(t, server, client, size)
			up2, down2 := path.Writes()
			limit := 1
			if !secure && size >= 16<<10 {
				limit = 2
			}
			if up2-up > limit || down2-down > limit {
				t.Errorf("tls=%t, %d bytes: %d writes up, %d down", secure, size, up2-up, down2-down)
			}
		}
	}
}

// Many messages and control frames both ways at once: nothing is lost, mixed up
// or out of order.
func TestConcurrency(t *testing.T) {
	for _, cfg := range []carriertest.Config{{TCP: true}, {TCP: true, TLS: true}, {TCP: true, HTTP: true}} {
		t.Run(fmt.Sprintf("tls=%t,http=%t", cfg.TLS, cfg.HTTP), func(t *testing.T) {
			client, server := carriertest.Pair(t, cfg)
			const rounds = 300
			size := func(i int) int { return (i * 7919) % (maxMessage - 4) }
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for _, ends := range [][2]*carrier.Conn{{client, server}, {server, client}} {
				wg.Go(func() {
					p := make([]byte, maxMessage)
					for i := range rounds {
						n := 4 + size(i)
						for j := range p[:n] {
							p[j] = byte(i + j)
						}
						if err := send(ends[0], p[:n]); err != nil {
							t.Error(err)
							return
						}
						clear(p[:n]) // it is ours again
					}
				})
				wg.Go(func() {
					p := make([]byte, maxMessage)
					for i := range rounds {
						n, err := ends[1].ReadMessage(p)
						if err != nil {
							t.Error(err)
							return
						}
						if n != 4+size(i) {
							t.Errorf("message %d has %d bytes", i, n)
							return
						}
						for j, b := range p[:n] {
							if b != byte(i+j) {
								t.Errorf("message %d, byte %d", i, j)
								return
							}
						}
					}
				})
			}
			var probes sync.WaitGroup
			for _, c := range []*carrier.Conn{client, server} {
				probes.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
							_ = c.Probe(ctx)
							cancel()
							c.SetUnsentLimit(16 << 10)
							c.SetUnsentLimit(0)
						}
					}
				})
			}
			wg.Wait()
			close(stop)
			client.Abort(nil)
			probes.Wait()
		})
	}
}

func TestMessageTooLarge(t *testing.T) {
	small := carrier.Options{MaxMessage: 1000}
	for _, size := range []int{1001, 1002, 5000, 100_000} {
		for _, way := range []string{"up", "down"} {
			t.Run(fmt.Sprintf("%s/%d", way, size), func(t *testing.T) {
				client, server := unequalPair(t, carrier.Options{MaxMessage: 200_000}, small, way)
				exchange(t, client, server, 1000)
				if err := send(server, make([]byte, 1001)); !errors.Is(err, carrier.ErrMessageTooLarge) {
					t.Errorf("written: %v", err)
				}
				if err := send(server, []byte{1}, make([]byte, 1001)); !errors.Is(err, carrier.ErrMessageTooLarge) {
					t.Errorf("written after a small one: %v", err)
				}
				exchange(t, server, client, 1000) // it is none the worse for it

				sent := make(chan error, 1)
				go func() { sent <- send(client, make([]byte, size)) }()
				buf := make([]byte, maxMessage)
				if _, err := server.ReadMessage(buf); !errors.Is(err, carrier.ErrMessageTooLarge) {
					t.Errorf("read: %v", err)
				}
				<-sent
				_, err := client.ReadMessage(buf)
				if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Code != 1009 {
					t.Errorf("the sender was told %v", err)
				}
				if _, err := server.ReadMessage(buf); !errors.Is(err, carrier.ErrMessageTooLarge) {
					t.Errorf("read again: %v", err)
				}
				if err := send(server, []byte{}); !errors.Is(err, carrier.ErrMessageTooLarge) {
					t.Errorf("written after death: %v", err)
				}
			})
		}
	}
	t.Run("default", func(t *testing.T) {
		client, _ := carriertest.Pair(t, carriertest.Config{})
		if err := send(client, make([]byte, maxMessage+1)); !errors.Is(err, carrier.ErrMessageTooLarge) {
			t.Errorf("written: %v", err)
		}
	})
	t.Run("short buffer", func(t *testing.T) {
		client, server := carriertest.Pair(t, carriertest.Config{})
		go func() { _ = send(client, make([]byte, 11)) }()
		if _, err := server.ReadMessage(make([]byte, 10)); !errors.Is(err, carrier.ErrMessageTooLarge) {
			t.Errorf("read: %v", err)
		}
	})
}

// A peer in the middle of a message that is refused is let finish, so that it sees
// why.
func TestPeerIsToldWhy(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{
		Options:       carrier.Options{MaxMessage: 1 << 20},
		ServerOptions: &carrier.Options{MaxMessage: 1000},
	})
	done := read(server)
	if err := send(client, make([]byte, 900_000)); err != nil {
		t.Error(err)
	}
	_, err := client.ReadMessage(make([]byte, maxMessage))
	if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Code != 1009 {
		t.Errorf("got %v", err)
	}
	if err := <-done; !errors.Is(err, carrier.ErrMessageTooLarge) {
		t.Error(err)
	}
}

// unequalPair returns a pair whose first end has the options big and whose
// second has small; the first is the client if way is "up".
func unequalPair(t *testing.T, big, small carrier.Options, way string) (*carrier.Conn, *carrier.Conn) {
	t.Helper()
	if way == "up" {
		return carriertest.Pair(t, carriertest.Config{TCP: true, Options: big, ServerOptions: &small})
	}
	client, server := carriertest.Pair(t, carriertest.Config{TCP: true, Options: small, ServerOptions: &big})
	return server, client
}

// read starts a ReadMessage and returns where its error will be.
func read(c *carrier.Conn) <-chan error {
	done := make(chan error, 1)
	go func() {
		for {
			if _, err := c.ReadMessage(make([]byte, maxMessage)); err != nil {
				done <- err
				return
			}
		}
	}()
	return done
}

func TestClose(t *testing.T) {
	for _, cfg := range []carriertest.Config{{}, {TCP: true, TLS: true}, {TCP: true, HTTP: true}} {
		for _, way := range []string{"client closes", "server closes"} {
			t.Run(fmt.Sprintf("tls=%t,http=%t,%s", cfg.TLS, cfg.HTTP, way), func(t *testing.T) {
				near, far := carriertest.Pair(t, cfg)
				if way == "server closes" {
					near, far = far, near
				}
				nearDone, farDone := read(near), read(far)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if err := near.Close("going home"); err != nil {
							t.Error(err)
						}
					})
				}
				if err := <-nearDone; !errors.Is(err, net.ErrClosed) {
					t.Errorf("here: %v", err)
				}
				err := <-farDone
				if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Code != 1000 || ce.Reason != "going home" {
					t.Errorf("there: %v", err)
				}
				wg.Wait()
				if err := send(near, []byte{1}); !errors.Is(err, net.ErrClosed) {
					t.Errorf("write here: %v", err)
				}
				if err := send(far, []byte{1}); err == nil {
					t.Error("write there went through")
				}
				if err := far.Close(""); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// Dismiss tells the peer why, and this end's reader gets the cause.
func TestDismiss(t *testing.T) {
	for name, cfg := range map[string]carriertest.Config{
		"memory": {}, "tcp": {TCP: true}, "tls": {TCP: true, TLS: true}, "sealed": {TCP: true, Sealed: true}, "http": {TCP: true, HTTP: true},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := carriertest.Pair(t, cfg)
			clientDone, serverDone := read(client), read(server)
			cause := errors.New("credential has expired")
			server.Dismiss(cause, "credential ended")
			if err := <-serverDone; !errors.Is(err, cause) {
				t.Errorf("here: %v", err)
			}
			reason := "credential ended"
			if cfg.Sealed { // a close frame is not sealed
				reason = ""
			}
			err := <-clientDone
			if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Code != 1008 || ce.Reason != reason || !ce.FromAgent() {
				t.Errorf("there: %v", err)
			}
		})
	}
}

// A peer that does not read delays the end by a second at most.
func TestDismissDeafPeer(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *carriertest.Path, _, server *carrier.Conn) {
		written := writeForever(server)
		synctest.Wait()
		done := read(server)
		start := time.Now()
		cause := errors.New("credential has expired")
		server.Dismiss(cause, "credential ended")
		for _, c := range []<-chan error{done, written} {
			if err := <-c; !errors.Is(err, cause) {
				t.Error(err)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// When Close has returned, nothing of the Conn runs.
func TestCloseJoins(t *testing.T) {
	for range 20 {
		client, server := carriertest.Pair(t, carriertest.Config{})
		done := read(client)
		_ = server.Close("")
		_ = client.Close("")
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, loop := range []string{"flushLoop", "pulse"} {
			if bytes.Contains(stacks, []byte("carrier.(*Conn)."+loop)) {
				t.Fatalf("%s still runs", loop)
			}
		}
		<-done
	}
}

// Everything that was written before Close arrives before the close.
func TestCloseAfterMessages(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{TCP: true})
	clientDone := read(client)
	go func() {
		for range 50 {
			_ = send(client, make([]byte, 1000))
		}
		_ = client.Close(strings.Repeat("é", 100))
	}()
	buf := make([]byte, maxMessage)
	for range 50 {
		if n, err := server.ReadMessage(buf); err != nil || n != 1000 {
			t.Fatal(n, err)
		}
	}
	_, err := server.ReadMessage(buf)
	if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Reason != strings.Repeat("é", 61) {
		t.Error(err)
	}
	<-clientDone
}

// Close ends within a second whatever the peer does, and with it everything that
// is in progress.
func TestCloseIsBounded(t *testing.T) {
	faults := map[string]func(*carriertest.Path){
		"peer does not read": func(*carriertest.Path) {},
		"path is dead":       func(p *carriertest.Path) { p.Stall() },
	}
	for name, fault := range faults {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,tls=%t", name, secure), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					path := carriertest.NewPath()
					client, server := carriertest.Pair(t, carriertest.Config{Path: path, TLS: secure})
					fault(path)
					reads, writes := read(client), writeForever(client)
					synctest.Wait()
					start := time.Now()
					_ = client.Close("enough")
					if took := time.Since(start); took > time.Second {
						t.Errorf("took %v", took)
					}
					if err := <-reads; !errors.Is(err, net.ErrClosed) {
						t.Errorf("read: %v", err)
					}
					if err := <-writes; !errors.Is(err, net.ErrClosed) {
						t.Errorf("write: %v", err)
					}
					server.Abort(nil)
					_ = server.Close("")
				})
			})
		}
	}
}

func writeForever(c *carrier.Conn) <-chan error {
	done := make(chan error, 1)
	go func() {
		message := make([]byte, 50_000)
		for {
			if err := send(c, message); err != nil {
				done <- err
				return
			}
		}
	}()
	return done
}

func TestAbort(t *testing.T) {
	displaced := errors.New("displaced")
	tests := []struct {
		secure      bool
		cause, want error
	}{
		{false, displaced, displaced}, {true, displaced, displaced}, {false, nil, net.ErrClosed},
	}
	for _, tt := range tests {
		bubble.Test(t, func(t *testing.T) {
			client, server := carriertest.Pair(t, carriertest.Config{TLS: tt.secure})
			reads, writes := read(server), writeForever(server)
			synctest.Wait()
			start := time.Now()
			server.Abort(tt.cause)
			server.Abort(errors.New("too late"))
			if err := <-reads; !errors.Is(err, tt.want) {
				t.Errorf("read: %v", err)
			}
			if err := <-writes; !errors.Is(err, tt.want) {
				t.Errorf("write: %v", err)
			}
			if err := server.Probe(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("probe: %v", err)
			}
			_ = server.Close("")
			if took := time.Since(start); took != 0 {
				t.Errorf("took %v", took)
			}
			// The other end sees what was on its way, and then a cut.
			err := <-read(client)
			if _, ok := errors.AsType[*carrier.CloseError](err); ok || errors.Is(err, carrier.ErrProtocol) {
				t.Errorf("there: %v", err)
			}
			_ = client.Close("")
		})
	}
}

// Nothing is left of a Conn that was aborted.
func TestAbortFreesMemory(t *testing.T) {
	accepted := make(chan *carrier.Conn)
	srv := httptest.NewServer(&carrier.Handler{Admit: func(carrier.Request) (carrier.Admission, error) {
		return carrier.Admission{Attach: func(c *carrier.Conn) { accepted <- c }}, nil
	}})
	defer srv.Close()
	dialer := &carrier.Dialer{URL: parseURL(t, srv.URL)}
	var ended []weak.Pointer[carrier.Conn]
	end := func() {
		dialled := make(chan *carrier.Conn, 1)
		go func() {
			c, _, err := dialer.Dial(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			dialled <- c
		}()
		server := <-accepted
		for _, c := range []*carrier.Conn{<-dialled, server} {
			reading := read(c)
			c.Abort(nil)
			<-reading
			ended = append(ended, weak.Make(c))
		}
	}
	for range 5 {
		end()
	}
	left := func(p weak.Pointer[carrier.Conn]) bool { return p.Value() != nil }
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(ended, left); runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatal("they are not freed")
		}
		runtime.Gosched()
	}
}

// A cut between two frames and one in the middle of a frame are the same.
func TestCut(t *testing.T) {
	for _, secure := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			path := carriertest.NewPath()
			client, server := carriertest.Pair(t, carriertest.Config{Path: path, TLS: secure})
			clientDone, serverDone := read(client), read(server)
			path.Cut()
			for _, err := range []error{<-clientDone, <-serverDone} {
				if _, ok := errors.AsType[*carrier.CloseError](err); ok || errors.Is(err, carrier.ErrProtocol) || errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v", err)
				}
			}
			_ = client.Close("")
			_ = server.Close("")
		})
	}
	client, server := carriertest.Pair(t, carriertest.Config{TCP: true})
	go client.Abort(nil)
	if err := <-read(server); !errors.Is(err, syscall.ECONNRESET) { // nothing is left in the system
		t.Errorf("got %v, want a reset", err)
	}
}

// A write that fails ends the Conn, and says why, though nobody reads.
func TestCutWriter(t *testing.T) {
	for _, secure := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			path := carriertest.NewPath()
			client, server := carriertest.Pair(t, carriertest.Config{Path: path, TLS: secure})
			path.Cut()
			start := time.Now()
			fails := func(err error) {
				if err == nil || errors.Is(err, net.ErrClosed) || time.Since(start) != 0 {
					t.Errorf("tls=%t: got %v after %v, want a reset", secure, err, time.Since(start))
				}
			}
			fails(send(client, []byte{1}))
			fails(send(client, []byte{2}))
			fails(client.Probe(t.Context()))
			fails(server.Probe(t.Context()))
			fails(send(server, []byte{1}))
			_ = client.Close("")
			_ = server.Close("")
		})
	}
}

// A write fails when the peer has left; the reader, if it learns more, says why.
func TestReaderKnowsWhy(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		conns := make(chan *carrier.Conn, 1)
		serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
			Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
			},
		}})
		path, err := network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer path.Close()
		up := &upCut{Conn: path}
		client, _, err := (&carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "localhost"}, NetDial: given(up)}).Dial(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		server := <-conns
		clientDone, serverDone := read(client), read(server)
		synctest.Wait()
		up.cut = true
		if err := send(client, []byte{1}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("written: %v", err)
		}
		_ = server.Close("restart")
		<-serverDone
		for _, err := range []error{<-clientDone, send(client, []byte{1})} {
			if ce, ok := errors.AsType[*carrier.CloseError](err); !ok || ce.Reason != "restart" {
				t.Errorf("got %v, want the server's words", err)
			}
		}
		_ = client.Close("")
	})
}

// upCut is a conn that cannot write when cut, but reads whatever arrives.
type upCut struct {
	net.Conn
	cut bool
}

func (c *upCut) Write(p []byte) (int, error) {
	if c.cut {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}

func (c *upCut) Close() error { return nil }

func TestProbe(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		path := carriertest.NewPath()
		client, server := carriertest.Pair(t, carriertest.Config{Path: path})
		clientDone, serverDone := read(client), read(server)
		for _, c := range []*carrier.Conn{client, server, client} {
			start := time.Now()
			if err := c.Probe(t.Context()); err != nil || time.Since(start) != 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		}
		path.Stall()
		why := errors.New("not worth the wait")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, why)
		defer cancel()
		start := time.Now()
		if err := client.Probe(ctx); !errors.Is(err, why) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		client.Abort(nil)
		server.Abort(nil)
		<-clientDone
		<-serverDone
		_ = client.Close("")
		_ = server.Close("")
	})
}
