package attack

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what should happen soon, on a busy machine.
const patience = 20 * time.Second

// raw is a connection to a server that is spoken byte by byte.
type raw struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

// dialRaw connects to a server. from is the address to come from, any of 127.0.0.0/8
// on Linux; "" leaves it to the system.
func dialRaw(t testing.TB, server, from string) *raw {
	t.Helper()
	conn, err := dialFrom(t.Context(), server, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newRaw(t, conn)
}

func dialFrom(ctx context.Context, server, from string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return d.DialContext(ctx, "tcp", server)
}

// newRaw speaks on conn, which may be TLS.
func newRaw(t testing.TB, conn net.Conn) *raw {
	conn.SetDeadline(time.Now().Add(patience))
	return &raw{Conn: conn, t: t, r: bufio.NewReader(conn)}
}

func bearer(token string) string { return "Authorization: Bearer " + token }

func basic(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// sessionID is a new identifier of a session.
func sessionID() (id [16]byte) {
	_, _ = rand.Read(id[:])
	return id
}

// hello is the link's part of the upgrade request (mux/PROTOCOL.md, 2.1).
func hello(id [16]byte, resume bool, received uint64) []byte {
	b := []byte{1, 0}
	if resume {
		b[1] = 1
	}
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, received)
	b = binary.BigEndian.AppendUint32(b, 128<<10)
	return sealed(b)
}

// sealed is b with its checksum behind it.
func sealed(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// upgrade is the text of an upgrade request to the path "/", with more header lines.
func upgrade(hello []byte, lines ...string) string {
	all := append([]string{
		"GET / HTTP/1.1", "Host: culvert.test", "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==",
		"Sec-WebSocket-Protocol: culvert.v1",
		"Culvert-Hello: " + base64.RawURLEncoding.EncodeToString(hello),
	}, lines...)
	return strings.Join(all, "\r\n") + "\r\n\r\n"
}

// ask sends the text of a request and returns the answer, and its body unless it is
// a 101.
func (c *raw) ask(text string) (*http.Response, string) {
	c.t.Helper()
	resp, body, err := c.try(text)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, body
}

// try is ask for a server that may have hung up.
func (c *raw) try(text string) (*http.Response, string, error) {
	if _, err := io.WriteString(c, text); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// refused asks for an upgrade that must be answered with the given status.
func refused(t testing.TB, server string, status int, text string) (*http.Response, string) {
	t.Helper()
	c := dialRaw(t, server, "")
	defer c.Close()
	resp, body := c.ask(text)
	if resp.StatusCode != status {
		t.Fatalf("answered %s, want %d", resp.Status, status)
	}
	return resp, body
}

// session is a session on one carrier.
type session struct {
	*raw
	id        [16]byte
	resumed   bool
	sent      uint64 // offset of the next byte of the link
	received  uint64 // bytes of the other end's stream
	in        []byte // of them, not yet looked at
	next      uint32 // stream to open
	fragments []byte
	pong      string // the last one
}

// openSession has a new session from the server, with the given header lines.
func openSession(t testing.TB, server string, lines ...string) *session {
	t.Helper()
	s := attach(t, dialRaw(t, server, ""), sessionID(), lines...)
	s.send(frameSYN, controlStream, nil)
	return s
}

// attach makes c a carrier of a session that is to have the identifier.
func attach(t testing.TB, c *raw, id [16]byte, lines ...string) *session {
	t.Helper()
	s := &session{raw: c, id: id, next: 5}
	s.upgrade(upgrade(hello(id, false, 0), lines...))
	return s
}

// resume is the session on another carrier. The client of these tests does not send
// again what was lost, so nothing may be under way to the server.
func (s *session) resume(c *raw, lines ...string) *session {
	s.t.Helper()
	again := *s
	again.raw, again.fragments = c, nil
	again.upgrade(upgrade(hello(s.id, true, s.received), lines...))
	if again.sent != s.sent || !again.resumed {
		s.t.Fatalf("the server has %d bytes of %d, resumed %v", again.sent, s.sent, again.resumed)
	}
	return &again
}

// upgrade sends the text of an upgrade request, which must be accepted.
func (s *session) upgrade(text string) {
	s.t.Helper()
	resp, body := s.ask(text)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("answered %s, %q", resp.Status, body)
	}
	welcome, err := base64.RawURLEncoding.DecodeString(resp.Header.Get("Culvert-Hello"))
	if n := len(welcome) - 4; err != nil || n < 18 || string(sealed(welcome[:n:n])) != string(welcome) {
		s.t.Fatalf("welcome %x, %v", welcome, err)
	}
	s.resumed, s.sent = welcome[1]&1 != 0, binary.BigEndian.Uint64(welcome[2:])
}

// The commands of smux, and what the control stream says (mux/PROTOCOL.md, 3).
const (
	frameSYN = 0
	frameFIN = 1
	framePSH = 2

	controlStream = 3

	recordReset        = 2
	recordListen       = 4
	recordListening    = 5
	recordListenFailed = 6
)

// frame is a frame of smux.
type frame struct {
	command byte
	stream  uint32
	payload []byte
}

// send sends one frame in one message.
func (s *session) send(command byte, stream uint32, payload []byte) {
	s.t.Helper()
	f := []byte{2, command}
	f = binary.LittleEndian.AppendUint16(f, uint16(len(payload)))
	f = binary.LittleEndian.AppendUint32(f, stream)
	s.message(append(f, payload...))
}

// message sends bytes of the link as they are.
func (s *session) message(payload []byte) {
	s.t.Helper()
	m := binary.BigEndian.AppendUint64([]byte{1}, s.sent)
	m = binary.BigEndian.AppendUint64(m, s.received)
	s.sent += uint64(len(payload))
	s.webSocket(0x82, sealed(append(m, payload...)))
}

// acknowledge says what was received, and waits until the server has heard it.
func (s *session) acknowledge() {
	s.t.Helper()
	s.message(nil)
	s.webSocket(0x89, []byte("heard"))
	for s.pong = ""; s.pong != "heard"; {
		if err := s.more(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// webSocket sends one frame, masked with zeros.
func (s *session) webSocket(first byte, payload []byte) {
	s.t.Helper()
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, 0, 0, 0, 0)
	if _, err := s.Write(append(b, payload...)); err != nil {
		s.t.Fatal(err)
	}
}

// receive is the next frame, or the error that the carrier ended with.
func (s *session) receive() (frame, error) {
	for {
		if len(s.in) >= 8 {
			n := 8 + int(binary.LittleEndian.Uint16(s.in[2:]))
			if len(s.in) >= n {
				f := frame{s.in[1], binary.LittleEndian.Uint32(s.in[4:]), s.in[8:n:n]}
				s.in = s.in[n:]
				return f, nil
			}
		}
		if err := s.more(); err != nil {
			return frame{}, err
		}
	}
}

// more reads one WebSocket frame.
func (s *session) more() error {
	head := make([]byte, 2, 10)
	if _, err := io.ReadFull(s.r, head); err != nil {
		return err
	}
	length := uint64(head[1])
	if extra := map[byte]int{126: 2, 127: 8}[head[1]]; extra > 0 {
		var b [8]byte
		if _, err := io.ReadFull(s.r, b[8-extra:]); err != nil {
			return err
		}
		length = binary.BigEndian.Uint64(b[:])
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(s.r, payload); err != nil {
		return err
	}
	switch head[0] & 0x0f {
	case 0x8:
		return fmt.Errorf("closed: %q", payload)
	case 0x9:
		s.webSocket(0x8a, payload)
		return nil
	case 0xa:
		s.pong = string(payload)
		return nil
	}
	s.fragments = append(s.fragments, payload...)
	if head[0]&0x80 == 0 {
		return nil
	}
	m := s.fragments
	s.fragments = nil
	if len(m) < 21 || string(sealed(m[:len(m)-4:len(m)-4])) != string(m) {
		return fmt.Errorf("message %x", m)
	}
	switch m[0] {
	case 1:
	case 2:
		return fmt.Errorf("bye: %q", m[17:len(m)-4])
	default:
		return fmt.Errorf("message %x", m)
	}
	if offset := binary.BigEndian.Uint64(m[1:]); offset != s.received {
		return fmt.Errorf("offset %d after %d bytes", offset, s.received)
	}
	s.in = append(s.in, m[17:len(m)-4]...)
	s.received += uint64(len(m) - 21)
	return nil
}

// bytesOf reads n bytes of a stream; what others send meanwhile is passed over.
func (s *session) bytesOf(stream uint32, n int) ([]byte, error) {
	var b []byte
	for len(b) < n {
		f, err := s.receive()
		if err != nil {
			return b, err
		}
		if f.stream == stream && f.command == framePSH {
			b = append(b, f.payload...)
		}
		if f.stream == stream && f.command == frameFIN {
			return b, io.EOF
		}
		if r, ok := f.record(); ok && r.kind == recordReset && binary.BigEndian.Uint32(r.body) == stream {
			return b, fmt.Errorf("reset with %d %q", r.body[4], r.body[5:])
		}
	}
	return b, nil
}

// open opens a stream of the kind 1 (dial) or 3 (test), and returns the code of the
// answer, 0 for good, with its reason.
func (s *session) open(kind byte, target string) (stream uint32, code byte, reason string) {
	s.t.Helper()
	stream, s.next = s.next, s.next+2
	s.send(frameSYN, stream, nil)
	header := binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(target)))
	s.send(framePSH, stream, append(header, target...))
	b, err := s.bytesOf(stream, 1)
	if err != nil {
		s.t.Fatalf("opening a stream to %s: %v", target, err)
	}
	if b[0] != 0 {
		reason = string(b[2:])
	}
	return stream, b[0], reason
}

// echo sends a text on a stream and expects it back.
func (s *session) echo(stream uint32, text string) {
	s.t.Helper()
	s.send(framePSH, stream, []byte(text))
	if got, err := s.bytesOf(stream, len(text)); err != nil || string(got) != text {
		s.t.Fatalf("echo %q, %v, want %q", got, err, text)
	}
}

// record is something said on the control stream.
type record struct {
	kind byte
	body []byte
}

// record is what f says on the control stream. The server says one thing a frame.
func (f frame) record() (record, bool) {
	if f.stream != controlStream || f.command != framePSH || len(f.payload) < 3 {
		return record{}, false
	}
	return record{f.payload[0], f.payload[3:]}, true
}

func (s *session) say(kind byte, body []byte) {
	s.t.Helper()
	b := binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(body)))
	s.send(framePSH, controlStream, append(b, body...))
}

// listen asks for a remote forward, and returns the address that the server listens
// at, or the code of its refusal with the reason.
func (s *session) listen(forward uint32, bind string) (addr string, code byte, reason string) {
	s.t.Helper()
	s.say(recordListen, append(binary.BigEndian.AppendUint32(nil, forward), bind...))
	for {
		f, err := s.receive()
		if err != nil {
			s.t.Fatalf("listening at %s: %v", bind, err)
		}
		r, ok := f.record()
		if !ok || len(r.body) < 4 || binary.BigEndian.Uint32(r.body) != forward {
			continue
		}
		switch r.kind {
		case recordListening:
			return string(r.body[4:]), 0, ""
		case recordListenFailed:
			return "", r.body[4], string(r.body[5:])
		}
	}
}

// ended waits for the end of the carrier, and returns why it ended.
func (s *session) ended() error {
	for {
		if _, err := s.receive(); err != nil {
			return err
		}
	}
}
