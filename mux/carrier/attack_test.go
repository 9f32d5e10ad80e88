package carrier_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// victim is a server with one good client, whose carrier outlives every attack.
type victim struct {
	addr        string
	conns       chan *carrier.Conn
	good, goods *carrier.Conn
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{conns: make(chan *carrier.Conn, 1)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v.addr = ln.Addr().String()
	serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { v.conns <- c }}, nil
		},
	}})
	d := carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: v.addr}}
	if v.good, _, err = d.Dial(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	v.goods = <-v.conns
	t.Cleanup(func() {
		for _, c := range []*carrier.Conn{v.good, v.goods} {
			c.Abort(nil)
			_ = c.Close("")
		}
	})
	return v
}

// attacked makes one more connection and returns both its ends; the client's is
// a socket, just upgraded.
func (v *victim) attacked(t *testing.T) (net.Conn, *bufio.Reader, *carrier.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", v.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := upgradeRaw(t, conn)
	c := <-v.conns
	t.Cleanup(func() {
		c.Abort(nil)
		_ = c.Close("")
	})
	return conn, r, c
}

// attackedInMemory is attacked in a bubble.
func attackedInMemory(t *testing.T) (net.Conn, *bufio.Reader, *carrier.Conn) {
	t.Helper()
	network := carriertest.NewNetwork()
	conns := make(chan *carrier.Conn, 1)
	stop := serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
		},
	}})
	conn, err := network.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	r := upgradeRaw(t, conn)
	c := <-conns
	stop()
	return conn, r, c
}

// upgradeRaw makes a WebSocket of conn and returns what reads from it.
func upgradeRaw(t *testing.T, conn net.Conn) *bufio.Reader {
	t.Helper()
	req, err := http.NewRequest("GET", "http://culvert.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = upgradeHeader()
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	return r
}

// frame is a masked frame whose header says length bytes and which has payload.
// The mask is 0.
func frame(first byte, length uint64, payload []byte) []byte {
	f := []byte{first}
	switch {
	case length > 65535:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), length)
	case length > 125:
		f = binary.BigEndian.AppendUint16(append(f, 0x80|126), uint16(length))
	default:
		f = append(f, 0x80|byte(length))
	}
	return append(append(f, 0, 0, 0, 0), payload...)
}

func TestAttacks(t *testing.T) {
	v := newVictim(t)
	kilo := make([]byte, 1024)
	forever := func(piece []byte) func(io.Writer) {
		return func(w io.Writer) {
			for range (256 << 20) / len(piece) { // more than anybody should take
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}
	}
	once := func(b []byte) func(io.Writer) { return func(w io.Writer) { _, _ = w.Write(b) } }
	then := func(b []byte, next func(io.Writer)) func(io.Writer) {
		return func(w io.Writer) {
			once(b)(w)
			next(w)
		}
	}
	repeat := func(b []byte) []byte {
		var all []byte
		for len(all) < 16<<10 {
			all = append(all, b...)
		}
		return all
	}
	tests := []struct {
		name  string
		send  func(io.Writer)
		want  error
		close int // code of the close frame sent back
	}{
		{"a gigabyte in one frame", then(frame(0x82, 1<<30, nil), forever(kilo)), carrier.ErrMessageTooLarge, 1009},
		{"2^63-1 bytes in one frame", then(frame(0x82, 1<<63-1, nil), forever(kilo)), carrier.ErrMessageTooLarge, 1009},
		{"one byte too much", once(frame(0x82, maxMessage+1, make([]byte, maxMessage+1))), carrier.ErrMessageTooLarge, 1009},
		{"length with the top bit set", then(frame(0x82, 1<<63+5, nil), forever(kilo)), carrier.ErrProtocol, 1002},
		{"all bits of the length set", then(frame(0x82, 1<<64-1, nil), forever(kilo)), carrier.ErrProtocol, 1002},
		{"endless fragments of a kilobyte", then(frame(0x02, 1, kilo[:1]), forever(frame(0x00, 1024, kilo))), carrier.ErrMessageTooLarge, 1009},
		{"endless fragments of a byte", then(frame(0x02, 1, kilo[:1]), forever(repeat(frame(0x00, 1, kilo[:1])))), carrier.ErrMessageTooLarge, 1009},
		{"endless empty fragments", then(frame(0x02, 0, nil), forever(repeat(frame(0x00, 0, nil)))), carrier.ErrMessageTooLarge, 1009},
		{"endless pings inside a message", then(frame(0x02, 0, nil), forever(repeat(frame(0x89, 0, nil)))), carrier.ErrMessageTooLarge, 1009},
		{"text", once(frame(0x81, 2, []byte("hi"))), carrier.ErrProtocol, 1003},
		{"unmasked", once([]byte{0x82, 1, 'x'}), carrier.ErrProtocol, 1002},
		{"unknown opcode", once(frame(0x83, 0, nil)), carrier.ErrProtocol, 1002},
		{"unknown control opcode", once(frame(0x8b, 0, nil)), carrier.ErrProtocol, 1002},
		{"reserved bit", once(frame(0xa2, 0, nil)), carrier.ErrProtocol, 1002},
		{"compressed", once(frame(0xc2, 0, nil)), carrier.ErrProtocol, 1002},
		{"continuation of nothing", once(frame(0x80, 0, nil)), carrier.ErrProtocol, 1002},
		{"message inside a message", once(append(frame(0x02, 0, nil), frame(0x82, 0, nil)...)), carrier.ErrProtocol, 1002},
		{"oversized ping", once(frame(0x89, 126, kilo[:126])), carrier.ErrProtocol, 1002},
		{"fragmented ping", once(frame(0x09, 0, nil)), carrier.ErrProtocol, 1002},
		{"close with half a code", once(frame(0x88, 1, kilo[:1])), carrier.ErrProtocol, 1002},
		{"close with a forbidden code", once(frame(0x88, 2, []byte{0x03, 0xee})), carrier.ErrProtocol, 1002},
		{"garbage", once([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")), carrier.ErrProtocol, 1002},
		{"TLS", once([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")), carrier.ErrProtocol, 1002},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, r, c := v.attacked(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				tt.send(conn)
			}()
			answer := make(chan []byte, 1)
			go func() {
				all, _ := io.ReadAll(io.LimitReader(r, 1<<20))
				answer <- all
				conn.Close() // or the server would wait for it, for a second
			}()
			err := <-read(c)
			if !errors.Is(err, tt.want) {
				t.Errorf("died of %v, want %v", err, tt.want)
			}
			<-sent // and so the socket was closed
			if code := closeCode(<-answer); code != tt.close {
				t.Errorf("closed with %d, want %d", code, tt.close)
			}
			_ = c.Close("")
			runtime.ReadMemStats(&after)
			limit := uint64(4 << 20)
			if strings.Contains(tt.name, "pings") {
				limit = 128 << 20 // the WebSocket library makes 800 bytes of garbage for each
			}
			if garbage := after.TotalAlloc - before.TotalAlloc; garbage > limit {
				t.Errorf("%d bytes were allocated", garbage)
			}
			exchange(t, v.good, v.goods, 1000)
			exchange(t, v.goods, v.good, 1000)
		})
	}
}

// A peer that was told what it did wrong, or that its goodbye has come, and stays, is cut
// after a second; one that has nothing more to say, at once.
func TestPeerThatStays(t *testing.T) {
	tests := []struct {
		name  string
		send  []byte
		ends  bool // and so does what it sends
		want  error
		close int // code of the close frame sent back
		took  time.Duration
	}{
		{"text", frame(0x81, 1, []byte("x")), false, carrier.ErrProtocol, 1003, time.Second},
		{"close", frame(0x88, 2, []byte{0x03, 0xe8}), false, &carrier.CloseError{Code: 1000}, 1000, time.Second},
		{"end", nil, true, io.EOF, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				conn, r, c := attackedInMemory(t)
				start := time.Now()
				if _, err := conn.Write(tt.send); err != nil {
					t.Fatal(err)
				}
				if tt.ends { // and does not read either
					writes := writeForever(c)
					defer func() { <-writes }()
					synctest.Wait()
					_ = conn.(interface{ CloseWrite() error }).CloseWrite()
				}
				err := <-read(c)
				ce, isClose := tt.want.(*carrier.CloseError)
				if got, ok := errors.AsType[*carrier.CloseError](err); ok != isClose || ok && got.Code != ce.Code || !ok && !errors.Is(err, tt.want) {
					t.Errorf("died of %v, want %v", err, tt.want)
				}
				if !tt.ends {
					answer, err := io.ReadAll(r)
					if code := closeCode(answer); code != tt.close || err != nil {
						t.Errorf("closed with %d, %v, want %d", code, err, tt.close)
					}
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("told after %v", took)
				}
				_ = c.Close("")
				if took := time.Since(start); took != tt.took {
					t.Errorf("cut after %v, want %v", took, tt.took)
				}
			})
		})
	}
}

// What a peer is to be told is sent though something before it is stuck.
func TestLastWordWaits(t *testing.T) {
	for range 20 { // there are two ways
		bubble.Test(t, func(t *testing.T) {
			conn, r, c := attackedInMemory(t)
			for range 2 { // the path holds 256 KiB, and so no pong besides
				if err := send(c, make([]byte, 128<<10-10)); err != nil {
					t.Fatal(err)
				}
			}
			done := read(c)
			for _, b := range [][]byte{frame(0x89, 1, []byte("x")), frame(0x81, 1, []byte("x"))} {
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			if err := <-done; !errors.Is(err, carrier.ErrProtocol) {
				t.Errorf("died of %v", err)
			}
			_, _ = r.Discard(256 << 10)
			answer, err := io.ReadAll(r)
			if code := closeCode(answer); code != 1003 || err != nil {
				t.Errorf("closed with %d, %v after %x, want 1003", code, err, answer)
			}
			conn.Close()
			_ = c.Close("")
		})
	}
}

// What comes after the end is not read, though it has arrived.
func TestNothingAfterTheEnd(t *testing.T) {
	v := newVictim(t)
	good := frame(0x82, 4, []byte("good"))
	cause := errors.New("enough")
	for _, tt := range []struct {
		name  string
		first []byte
		abort error
		want  error
	}{
		{"text", frame(0x81, 0, nil), nil, carrier.ErrProtocol},
		{"abort", frame(0x82, 0, nil), cause, cause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, _, c := v.attacked(t)
			if _, err := conn.Write(append(tt.first, good...)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, maxMessage)
			_, err := c.ReadMessage(buf)
			if tt.abort != nil {
				if err != nil {
					t.Fatal(err)
				}
				c.Abort(tt.abort)
				_, err = c.ReadMessage(buf)
			}
			for range 2 {
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				_, err = c.ReadMessage(buf)
			}
			conn.Close() // or Close would wait for it, for a second
			_ = c.Close("")
		})
	}
}

// Frames that come along with the request are not lost.
func TestEarlyFrames(t *testing.T) {
	v := newVictim(t)
	conn, err := net.Dial("tcp", v.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var request bytes.Buffer
	req, err := http.NewRequest("GET", "http://culvert.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = upgradeHeader()
	_ = req.Write(&request)
	request.Write(frame(0x82, 5, []byte("early")))
	request.Write(frame(0x82, 3000, bytes.Repeat([]byte("x"), 3000)))
	if _, err := conn.Write(request.Bytes()); err != nil {
		t.Fatal(err)
	}
	c := <-v.conns
	buf := make([]byte, maxMessage)
	for _, want := range []int{5, 3000} {
		if n, err := c.ReadMessage(buf); n != want || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	c.Abort(nil)
	_ = c.Close("")
}

// A message in small fragments is within the bound on what it takes.
func TestFragments(t *testing.T) {
	v := newVictim(t)
	conn, _, c := v.attacked(t)
	want := bytes.Repeat([]byte("culvert!"), maxMessage/8)
	buf := make([]byte, maxMessage)
	for _, size := range []int{2, 100, 5000, maxMessage} {
		var sent []byte
		first := byte(0x02)
		for p := range slices.Chunk(want, size) {
			sent = append(sent, frame(first, uint64(len(p)), p)...)
			first = 0x00
		}
		sent = append(sent, frame(0x80, 0, nil)...)
		go func() { _, _ = conn.Write(sent) }()
		if n, err := c.ReadMessage(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("fragments of %d bytes: got %d of %d bytes, %v", size, n, len(want), err)
		}
	}
}

// The bound on what a message takes is not used up by what comes between two.
func TestManyPingsBetweenMessages(t *testing.T) {
	v := newVictim(t)
	conn, r, c := v.attacked(t)
	go func() { _, _ = io.Copy(io.Discard, r) }()
	buf := make([]byte, maxMessage)
	pings := bytes.Repeat(frame(0x89, 125, make([]byte, 125)), 10_000) // 1.3 MB
	for range 3 {
		go func() {
			_, _ = conn.Write(frame(0x82, 1, []byte("x")))
			_, _ = conn.Write(pings)
		}()
		if n, err := c.ReadMessage(buf); err != nil || n != 1 {
			t.Fatal(n, err)
		}
	}
}

// closeCode finds the code of the close frame in what a server sent, which is
// nothing else but pongs; 0 means there is none.
func closeCode(sent []byte) int {
	for len(sent) >= 2 {
		n := 2 + int(sent[1])
		if sent[0] == 0x88 && len(sent) >= 4 {
			return int(binary.BigEndian.Uint16(sent[2:]))
		}
		sent = sent[min(n, len(sent)):]
	}
	return 0
}

// A peer that pings without end is answered at a bounded rate, and what it does
// not read does not pile up.
func TestPingFlood(t *testing.T) {
	const seconds, perSecond = 30, 500
	tests := []struct {
		name      string
		readsLate bool // reads when the flood is over, and has messages waiting
		min, max  int  // pongs
	}{
		{"reads", false, 10 * (seconds - 1), 16 + 10*seconds},
		{"does not read", true, 16, 16 + 4096/127 + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				conn, r, c := attackedInMemory(t)
				done := read(c)

				pongs := make(chan int, 1)
				count := func() { pongs <- countPongs(r) }
				if tt.readsLate {
					writes := writeForever(c)
					defer func() { <-writes }()
					synctest.Wait()
				} else {
					go count()
				}
				ping := frame(0x89, 125, make([]byte, 125))
				for range seconds {
					for range perSecond {
						if _, err := conn.Write(ping); err != nil {
							t.Fatal(err)
						}
					}
					after(time.Second)
				}
				alive(t, "server", done)
				if tt.readsLate {
					go count()
				}
				synctest.Wait()
				c.Abort(nil)
				if n := <-pongs; n < tt.min || n > tt.max {
					t.Errorf("%d pongs to %d pings in %d s, want %d to %d", n, seconds*perSecond, seconds, tt.min, tt.max)
				}
				_ = c.Close("")
				conn.Close()
			})
		})
	}
}

// A client answers the pings of a server no faster.
func TestPingFloodToClient(t *testing.T) {
	const seconds, perSecond = 30, 500
	bubble.Test(t, func(t *testing.T) {
		c, conn := stolen(t)
		done := read(c)
		pongs := make(chan int, 1)
		go func() { pongs <- countPongs(bufio.NewReader(conn)) }()
		for range seconds {
			if _, err := conn.Write(bytes.Repeat([]byte{0x89, 0}, perSecond)); err != nil {
				t.Fatal(err)
			}
			after(time.Second)
		}
		alive(t, "client", done)
		c.Abort(nil)
		if n := <-pongs; n < 10*(seconds-1) || n > 16+10*seconds {
			t.Errorf("%d pongs to %d pings in %d s, want 10 a second", n, seconds*perSecond, seconds)
		}
		_ = c.Close("")
	})
}

// countPongs reads frames until the end, or until 20 MB were read.
func countPongs(r *bufio.Reader) int {
	pongs := 0
	for total := 0; total < 20<<20; {
		head, err := r.Peek(2)
		if err != nil {
			break
		}
		first, length, mask := head[0], int(head[1]&0x7f), int(head[1]>>7)*4
		_, _ = r.Discard(2)
		switch length {
		case 126:
			ext, _ := r.Peek(2)
			length = int(binary.BigEndian.Uint16(ext))
			_, _ = r.Discard(2)
		case 127:
			ext, _ := r.Peek(8)
			length = int(binary.BigEndian.Uint64(ext))
			_, _ = r.Discard(8)
		}
		if _, err := r.Discard(mask + length); err != nil {
			break
		}
		total += length
		if first == 0x8a {
			pongs++
		}
	}
	return pongs
}

// The same to a client: a server may be anybody's.
func TestAttackedClient(t *testing.T) {
	tests := []struct {
		name string
		send []byte
		want error
	}{
		{"a gigabyte", []byte{0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 0}, carrier.ErrMessageTooLarge},
		{"top bit", []byte{0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 1}, carrier.ErrProtocol},
		{"text", []byte{0x81, 1, 'x'}, carrier.ErrProtocol},
		{"compressed", []byte{0xc2, 1, 'x'}, carrier.ErrProtocol},
		{"garbage", []byte("\r\n\r\n<html>"), carrier.ErrProtocol},
		{"end", nil, io.EOF},
		{"end in a header", []byte{0x82, 127, 0}, io.ErrUnexpectedEOF},
		{"end in a message", []byte{0x82, 5, 'x'}, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, conn := stolen(t)
			go func() {
				_, _ = conn.Write(tt.send)
				if tt.want == carrier.ErrMessageTooLarge {
					_, _ = conn.Write(make([]byte, 10<<20))
				}
				conn.Close()
			}()
			err := <-read(c)
			if !errors.Is(err, tt.want) && !(errors.Is(err, io.EOF) && errors.Is(tt.want, io.ErrUnexpectedEOF)) {
				t.Errorf("died of %v, want %v", err, tt.want)
			}
			_ = c.Close("")
		})
	}
}

// stolen returns a client and the conn that its server would have.
func stolen(t *testing.T) (*carrier.Conn, net.Conn) {
	t.Helper()
	network := carriertest.NewNetwork()
	raw := make(chan net.Conn, 1)
	h := &carrier.Handler{Admit: func(carrier.Request) (carrier.Admission, error) {
		return carrier.Admission{Attach: func(c *carrier.Conn) {
			t.Error("not hijacked")
			c.Abort(nil)
		}}, nil
	}}
	serve(t, network, carrier.ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&stealer{w, raw}, r)
	})})
	d := carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "localhost"}, NetDial: network.Dial}
	c, _, err := d.Dial(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := <-raw
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// stealer takes the connection away from the Handler when it is upgraded.
type stealer struct {
	http.ResponseWriter
	conn chan<- net.Conn
}

func (s *stealer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, _, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	s.conn <- conn
	return nil, nil, errors.New("stolen")
}
