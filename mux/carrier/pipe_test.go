package carrier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// boxed is a server with a box in front, in memory.
type boxed struct {
	dialer   *carrier.Dialer
	conns    chan *carrier.Conn
	upgrades atomic.Int32 // requests for one that reached the box
	requests atomic.Int32 // all of them
}

// throughBox runs f in a bubble where everything passes a reverse proxy within
// box, which gets the proxy as next.
func throughBox(t *testing.T, box func(next http.Handler) http.Handler, f func(t *testing.T, b *boxed)) {
	bubble.Test(t, func(t *testing.T) {
		near, far := carriertest.NewNetwork(), carriertest.NewNetwork()
		b := &boxed{conns: make(chan *carrier.Conn, 1)}
		b.dialer = &carrier.Dialer{
			URL: &url.URL{Scheme: "ws", Host: "127.0.0.1"}, Credential: token("secret"), NetDial: near.Dial,
			Mode: carrier.ModeAuto, Ladder: new(carrier.Ladder),
		}
		stop := serve(t, far, carrier.ServerConfig{Handler: &carrier.Handler{
			Authenticate: secretOnly,
			Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Reply: []byte("ho"), Attach: func(c *carrier.Conn) { b.conns <- c }}, nil
			},
		}})
		transport := &http.Transport{DialContext: far.Dial}
		next := &httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "server"}) },
			Transport:     transport,
			FlushInterval: -1,
			ErrorLog:      discardLog(),
		}
		handler := box(next)
		front := &http.Server{ErrorLog: discardLog(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.requests.Add(1)
			if r.Header.Get("Upgrade") != "" {
				b.upgrades.Add(1)
			}
			handler.ServeHTTP(w, r)
		})}
		served := make(chan struct{})
		go func() {
			_ = front.Serve(near)
			close(served)
		}()
		defer func() {
			_ = front.Close()
			<-served
			stop()
			transport.CloseIdleConnections()
		}()
		f(t, b)
	})
}

// dial makes a carrier and checks how.
func (b *boxed) dial(t *testing.T, mode carrier.Mode) (client, server *carrier.Conn) {
	t.Helper()
	started := time.Now()
	client, reply, err := b.dialer.Dial(t.Context(), []byte("hi"))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if client.Mode() != mode || string(reply) != "ho" {
		t.Errorf("mode %q, reply %q", client.Mode(), reply)
	}
	server = <-b.conns
	if server.Mode() != mode {
		t.Errorf("mode %q at the server", server.Mode())
	}
	return client, server
}

func abort(conns ...*carrier.Conn) {
	for _, c := range conns {
		c.Abort(nil)
		_ = c.Close("")
	}
}

func direct(next http.Handler) http.Handler { return next }

// upgradesOnly makes a box that does something of its own with upgrades.
func upgradesOnly(do http.HandlerFunc) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				do(w, r)
			} else {
				next.ServeHTTP(w, r)
			}
		})
	}
}

// A front may rewrite the path of requests. It cannot rewrite that of the upgrade inside
// of a pipe.
func TestPipeThroughFrontThatRewritesPath(t *testing.T) {
	rewrite := func(next http.Handler) http.Handler {
		return strip(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/vpn" {
				http.NotFound(w, r)
				return
			}
			r.URL.Path = "/"
			next.ServeHTTP(w, r)
		}))
	}
	for _, mode := range []carrier.Mode{carrier.ModeAuto, carrier.ModeHTTP} {
		throughBox(t, rewrite, func(t *testing.T, b *boxed) {
			b.dialer.Mode, b.dialer.URL.Path = mode, "/vpn"
			abort(b.dial(t, carrier.ModeHTTP))
		})
	}
}

func answers(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func strip(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Upgrade")
		r.Header.Del("Connection")
		next.ServeHTTP(w, r)
	})
}

func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // until then net/http does not see the client leave
	<-r.Context().Done()
}

func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// Where no upgrade passes, a dial makes an HTTP pipe within 5 s; the next ones do
// so at once, and look again after ten minutes.
func TestAutoFallsBack(t *testing.T) {
	for name, box := range map[string]func(http.Handler) http.Handler{
		"stripped":       strip,
		"forbidden":      upgradesOnly(answers(403)),
		"not found":      upgradesOnly(answers(404)),
		"bad gateway":    upgradesOnly(answers(502)),
		"an empty page":  upgradesOnly(answers(200)),
		"never answered": upgradesOnly(hang),
		"cut":            upgradesOnly(cut),
		"101 of another": upgradesOnly(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			conn.Close()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			throughBox(t, box, func(t *testing.T, b *boxed) {
				for _, step := range []struct {
					after time.Duration // since the one before
					want  int32         // upgrades so far
				}{{0, 1}, {50 * time.Second, 1}, {50 * time.Second, 2}, {9 * time.Minute, 2}, {2 * time.Minute, 3}} {
					after(step.after)
					client, server := b.dial(t, carrier.ModeHTTP)
					exchange(t, client, server, 100_000)
					exchange(t, server, client, 100_000)
					abort(client, server)
					if got := b.upgrades.Load(); got != step.want {
						t.Errorf("%d upgrades were tried, want %d", got, step.want)
					}
				}
			})
		})
	}
}

// Where upgrades pass, nothing else is tried.
func TestAutoPrefersWebSocket(t *testing.T) {
	throughBox(t, direct, func(t *testing.T, b *boxed) {
		client, server := b.dial(t, carrier.ModeWebSocket)
		exchange(t, client, server, 10)
		abort(client, server)
		if n := b.requests.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// An answer of the server's own is final.
func TestAutoBelievesTheServer(t *testing.T) {
	throughBox(t, direct, func(t *testing.T, b *boxed) {
		b.dialer.Credential = token("guess")
		_, _, err := b.dialer.Dial(t.Context(), nil)
		if !errors.Is(err, carrier.ErrUnauthorized) || b.requests.Load() != 1 {
			t.Errorf("%v after %d requests", err, b.requests.Load())
		}
	})
	throughBox(t, strip, func(t *testing.T, b *boxed) {
		b.dialer.Credential = token("guess")
		if _, _, err := b.dialer.Dial(t.Context(), nil); !errors.Is(err, carrier.ErrUnauthorized) {
			t.Error(err)
		}
	})
}

// Where neither passes, the error is that of the upgrade.
func TestAutoFails(t *testing.T) {
	website := func(http.Handler) http.Handler { return http.NotFoundHandler() }
	throughBox(t, website, func(t *testing.T, b *boxed) {
		_, _, err := b.dialer.Dial(t.Context(), nil)
		phaseOf(t, err, carrier.PhaseUpgrade)
		if !errors.Is(err, carrier.ErrNotCulvert) || b.upgrades.Load() != 1 {
			t.Errorf("%v after %d upgrades", err, b.upgrades.Load())
		}
	})
	// What is only slow is given the whole time when it is tried again.
	throughBox(t, func(http.Handler) http.Handler { return http.HandlerFunc(hang) }, func(t *testing.T, b *boxed) {
		for _, want := range []time.Duration{13 * time.Second, 20 * time.Second} {
			started := time.Now()
			_, _, err := b.dialer.Dial(t.Context(), nil)
			phaseOf(t, err, carrier.PhaseUpgrade)
			if took := time.Since(started); !errors.Is(err, context.DeadlineExceeded) || took != want {
				t.Errorf("%v after %v, want %v", err, took, want)
			}
		}
	})
}

// A box that answers 101 and lets no frame pass is found out after two carriers.
func TestAutoFindsMuteWebSockets(t *testing.T) {
	throughBox(t, direct, func(t *testing.T, b *boxed) {
		for range 2 {
			path := carriertest.NewPath()
			dial := b.dialer.NetDial
			dialer := *b.dialer
			dialer.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				far, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				conn, near := path.Ends()
				go func() { _, _ = io.Copy(far, near); far.Close() }()
				go func() { _, _ = io.Copy(near, far); near.Close() }()
				return conn, nil
			}
			client, _, err := dialer.Dial(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			server := <-b.conns
			path.Stall()
			done := read(client)
			if err := <-done; !errors.Is(err, carrier.ErrHeartbeat) {
				t.Error(err)
			}
			path.Cut()
			abort(client, server)
		}
		client, server := b.dial(t, carrier.ModeHTTP)
		abort(client, server)
	})
}

// buffer is a box that passes on an answer when it has all of it.
func buffer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(struct{ http.ResponseWriter }{rec}, r)
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// small is a box that lets no body of more than 64 KiB through.
func small(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 64<<10 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// impatient is a box that waits 3 s for an answer.
func impatient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
		defer cancel()
		rec := httptest.NewRecorder()
		next.ServeHTTP(struct{ http.ResponseWriter }{rec}, r.WithContext(ctx))
		if ctx.Err() != nil {
			w.WriteHeader(http.StatusGatewayTimeout)
			return
		}
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// closing is a box that closes each connection after one request.
func closing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		next.ServeHTTP(w, r)
	})
}

// old is a box that answers in HTTP/1.0.
func old(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		next.ServeHTTP(&oldWriter{Conn: conn, header: http.Header{}}, r)
	})
}

type oldWriter struct {
	net.Conn
	header http.Header
	wrote  bool
}

func (w *oldWriter) Header() http.Header { return w.header }
func (w *oldWriter) Flush()              {}

func (w *oldWriter) WriteHeader(status int) {
	if !w.wrote {
		w.wrote = true
		_, _ = fmt.Fprintf(w.Conn, "HTTP/1.0 %d x\r\n", status)
		_ = w.header.Write(w.Conn)
		_, _ = io.WriteString(w.Conn, "Connection: close\r\n\r\n")
	}
}

func (w *oldWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.Conn.Write(p)
}

// Whatever boxes do to requests and answers, messages pass, and the carrier lasts
// through silence.
func TestPipeThroughBoxes(t *testing.T) {
	for name, box := range map[string]func(http.Handler) http.Handler{
		"direct": direct, "buffer": buffer, "small": small, "impatient": impatient, "closing": closing, "HTTP/1.0": old,
		"all": func(next http.Handler) http.Handler { return closing(small(impatient(buffer(next)))) },
	} {
		t.Run(name, func(t *testing.T) {
			throughBox(t, box, func(t *testing.T, b *boxed) {
				b.dialer.Mode = carrier.ModeHTTP
				client, server := b.dial(t, carrier.ModeHTTP)
				clientDone, serverDone := read(client), read(server)
				after(10 * time.Minute)
				alive(t, "client", clientDone)
				alive(t, "server", serverDone)
				abort(client, server)
				client, server = b.dial(t, carrier.ModeHTTP)
				for _, size := range []int{0, 1, 1000, 65536, maxMessage} {
					exchange(t, client, server, size)
					exchange(t, server, client, size)
				}
				abort(client, server)
			})
		})
	}
}

// cutting is a box that cuts each answer after 1.5 s, and loses what came in the
// last third of that.
func cutting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
		defer cancel()
		next.ServeHTTP(&losing{w, time.Now().Add(time.Second)}, r.WithContext(ctx))
	})
}

type losing struct {
	http.ResponseWriter
	from time.Time
}

func (w *losing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *losing) Write(p []byte) (int, error) {
	if time.Now().Before(w.from) {
		return w.ResponseWriter.Write(p)
	}
	return len(p), nil
}

// Bytes that are lost in an answer that was cut end the carrier, and the next one
// makes do with short answers.
func TestPipeCut(t *testing.T) {
	throughBox(t, cutting, func(t *testing.T, b *boxed) {
		b.dialer.Mode = carrier.ModeHTTP
		client, server := b.dial(t, carrier.ModeHTTP)
		clientDone, serverDone := read(client), read(server)
		for i := 0; i < 100 && send(server, []byte("lost")) == nil; i++ {
			after(100 * time.Millisecond)
		}
		if err := <-clientDone; !strings.Contains(err.Error(), "was cut") {
			t.Errorf("died of %v", err)
		}
		abort(client, server)
		<-serverDone

		client, server = b.dial(t, carrier.ModeHTTP)
		clientDone, serverDone = read(client), read(server)
		after(5 * time.Second)
		for range 100 {
			if err := send(server, []byte("kept")); err != nil {
				t.Fatal(err)
			}
			after(90 * time.Millisecond)
		}
		after(time.Minute)
		alive(t, "client", clientDone)
		alive(t, "server", serverDone)
		abort(client, server)
	})
}

// Where answers stream, one lasts.
func TestPipeStreams(t *testing.T) {
	var gets atomic.Int32
	box := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				gets.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	}
	throughBox(t, box, func(t *testing.T, b *boxed) {
		b.dialer.Mode = carrier.ModeHTTP
		client, server := b.dial(t, carrier.ModeHTTP)
		read(client)
		read(server)
		after(4 * time.Minute)
		if n := gets.Load(); n > 4 { // the probe, two polls at most, and this
			t.Errorf("%d GETs", n)
		}
		abort(client, server)
	})
}

// A box that ends what streams at once makes nobody ask in a hurry.
func TestPipeEmptyStreams(t *testing.T) {
	box := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && r.Header.Get("Culvert-Pipe") != "probe" && r.Header.Get("Culvert-Wait") == "" {
				w.Header().Set("Culvert-Offset", r.Header.Get("Culvert-Offset"))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	throughBox(t, box, func(t *testing.T, b *boxed) {
		b.dialer.Mode = carrier.ModeHTTP
		client, server := b.dial(t, carrier.ModeHTTP)
		clientDone, serverDone := read(client), read(server)
		after(time.Minute)
		alive(t, "client", clientDone)
		alive(t, "server", serverDone)
		if n := b.requests.Load(); n > 40 {
			t.Errorf("%d requests in a minute of silence", n)
		}
		abort(client, server)
	})
}

// OnIdle's function is called when the reader of a pipe is about to wait, and not
// while it could still read something.
func TestPipeIdle(t *testing.T) {
	for _, way := range []string{"up", "down"} {
		t.Run(way, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				from, to := carriertest.Pair(t, carriertest.Config{HTTP: true})
				if way == "down" {
					from, to = to, from
				}
				idle := 0
				to.OnIdle(func() {
					idle++
					if err := send(from, []byte("at last")); err != nil {
						t.Error(err)
					}
				})
				if err := send(from, messages(10, 20_000, 0)...); err != nil {
					t.Fatal(err)
				}
				after(time.Second) // everything arrives
				buf := make([]byte, maxMessage)
				for i, size := range []int{10, 20_000, 0} {
					if n, err := to.ReadMessage(buf); n != size || err != nil || idle != 0 {
						t.Fatalf("message %d: %d bytes, %v, idle %d times before it", i, n, err, idle)
					}
				}
				if n, err := to.ReadMessage(buf); string(buf[:n]) != "at last" || err != nil || idle != 1 {
					t.Fatalf("%d bytes, %v, idle %d times before them", n, err, idle)
				}
				abort(from, to)
			})
		})
	}
}

// An end that leaves without a word is missed at once, and its requests end.
func TestPipeAbort(t *testing.T) {
	for _, way := range []string{"client leaves", "server leaves"} {
		t.Run(way, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				near, far := carriertest.Pair(t, carriertest.Config{HTTP: true})
				if way == "server leaves" {
					near, far = far, near
				}
				nearDone, farDone := read(near), read(far)
				after(time.Second)
				started := time.Now()
				near.Abort(nil)
				<-nearDone
				if err := <-farDone; !errors.Is(err, io.EOF) || time.Since(started) != 0 {
					t.Errorf("%v after %v", err, time.Since(started))
				}
				abort(near, far)
			})
		})
	}
}

// An answer 101 that nobody has asked for ends the dial at once, and whatever was
// started for it.
func TestPipeUnasked101(t *testing.T) {
	box := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		})
	}
	throughBox(t, box, func(t *testing.T, b *boxed) { // which fails if a goroutine stays
		b.dialer.Mode = carrier.ModeHTTP
		started := time.Now()
		_, _, err := b.dialer.Dial(t.Context(), nil)
		if !errors.Is(err, carrier.ErrNotCulvert) || time.Since(started) != 0 {
			t.Errorf("%v after %v", err, time.Since(started))
		}
	})
}

// What a box does for a while ends no program: an error that stays, of the one way,
// does not stand before one that passes, of the other.
func TestAutoHopes(t *testing.T) {
	box := func(http.Handler) http.Handler {
		return upgradesOnly(answers(403))(answers(502))
	}
	throughBox(t, box, func(t *testing.T, b *boxed) {
		if err := dialed(t, b.dialer); err == nil || carrier.Permanent(err) {
			t.Error(err)
		}
	})
}

// A WebSocket whose only message came together with the answer to the upgrade was not
// mute: however often such a one is cut, the next dial makes a WebSocket.
func TestAutoHearsAnEarlyMessage(t *testing.T) {
	throughBox(t, direct, func(t *testing.T, b *boxed) {
		for range 3 {
			client, server := b.dial(t, carrier.ModeWebSocket)
			write(t, server, "early")
			if _, err := client.ReadMessage(make([]byte, 100)); err != nil { // no time passes in the bubble
				t.Fatal(err)
			}
			done := read(client)
			server.Abort(nil)
			<-done
			abort(client, server)
		}
		if again := b.dialer.Ladder.Again(); again > 0 {
			t.Errorf("no WebSocket is tried for %v", again)
		}
	})
}

// A way that begins to hold answers back is found out by the next dial but one.
func TestPipeUnlearns(t *testing.T) {
	var buffers atomic.Bool
	box := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if buffers.Load() {
				buffer(next).ServeHTTP(w, r)
			} else {
				next.ServeHTTP(w, r)
			}
		})
	}
	throughBox(t, box, func(t *testing.T, b *boxed) {
		b.dialer.Mode = carrier.ModeHTTP
		client, server := b.dial(t, carrier.ModeHTTP)
		after(time.Second)
		abort(client, server)
		buffers.Store(true)
		if err := dialed(t, b.dialer); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		abort(<-b.conns)
		client, server = b.dial(t, carrier.ModeHTTP)
		exchange(t, server, client, 1000)
		abort(client, server)
	})
}

// An open pipe waits as long as Retry-After asks before it sends a request again. It ends
// if that is longer than a pipe lives without requests, and its error says how long to wait.
func TestPipeRetryAfter(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for _, asked := range []time.Duration{4 * time.Second, time.Minute} {
			t.Run(fmt.Sprint(method, " ", asked), func(t *testing.T) {
				var busy atomic.Bool
				refused, again := make(chan time.Time, 1), make(chan time.Time, 1)
				box := func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						switch {
						case r.Method != method:
						case busy.CompareAndSwap(true, false):
							refused <- time.Now()
							w.Header().Set("Retry-After", fmt.Sprint(asked.Seconds()))
							w.WriteHeader(http.StatusTooManyRequests)
							return
						case len(refused) == 1 && len(again) == 0:
							again <- time.Now()
						}
						buffer(next).ServeHTTP(w, r) // so that the client polls
					})
				}
				throughBox(t, box, func(t *testing.T, b *boxed) {
					b.dialer.Mode = carrier.ModeHTTP
					client, server := b.dial(t, carrier.ModeHTTP)
					clientDone, serverDone := read(client), read(server)
					defer abort(client, server)
					after(time.Minute) // by then it is known whether answers stream
					busy.Store(true)
					after(4 * time.Minute)
					if len(refused) == 0 {
						t.Fatal("no request was refused")
					}
					if asked > 5*time.Second {
						if err := <-clientDone; carrier.RetryAfter(err) != asked {
							t.Errorf("the pipe ended with %v, want an error that asks to wait for %v", err, asked)
						}
						return
					}
					alive(t, "client", clientDone)
					alive(t, "server", serverDone)
					if pause := (<-again).Sub(<-refused); pause < asked {
						t.Errorf("sent again after %v, want %v at least", pause, asked)
					}
				})
			})
		}
	}
}
