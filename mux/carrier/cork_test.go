package carrier

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// sink is a conn that keeps what is written, and counts the calls.
type sink struct {
	net.Conn
	got   bytes.Buffer
	calls int
	block chan struct{} // if not nil, Write waits for it
	err   error
}

func (s *sink) Write(p []byte) (int, error) {
	s.calls++
	if s.block != nil {
		<-s.block
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.got.Write(p)
}

func (s *sink) Close() error { return nil }

func startedCork(conn net.Conn) *cork {
	k := newCork(newWire(conn), true)
	k.start(func() {})
	return k
}

func write(t *testing.T, k *cork, p []byte) {
	t.Helper()
	if n, err := k.Write(p); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
}

func TestCorkPassesThroughUntilStarted(t *testing.T) {
	s := &sink{}
	k := newCork(newWire(s), true)
	write(t, k, []byte("GET /"))
	if s.got.String() != "GET /" {
		t.Errorf("got %q", s.got.String())
	}
	k.start(func() {})
	write(t, k, []byte("later"))
	if s.got.String() != "GET /" {
		t.Errorf("got %q", s.got.String())
	}
}

// A client reads nothing before it has spoken: http.Transport would tell the
// standard logger about a server that speaks first.
func TestCorkSpeaksFirst(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		k := newCork(newWire(near), true)
		go func() { _, _ = far.Write([]byte("HTTP/1.1 400 Bad")) }()
		read := make(chan string, 2)
		go func() {
			p := make([]byte, 100)
			n, _ := k.Read(p)
			read <- string(p[:n])
		}()
		synctest.Wait()
		if len(read) != 0 {
			t.Errorf("read %q", <-read)
		}
		go func() { _, _ = far.Read(make([]byte, 100)) }()
		write(t, k, []byte("GET /"))
		if got := <-read; got != "HTTP/1.1 400 Bad" || string(k.answered()) != got {
			t.Errorf("read %q, answered %q", got, k.answered())
		}

		// An end ends the wait.
		for _, end := range []func(k *cork){(*cork).closeSocket, func(k *cork) { _ = k.Close() }} {
			near, _ := net.Pipe()
			k := newCork(newWire(near), true)
			failed := make(chan error)
			go func() {
				_, err := k.Read(make([]byte, 1))
				failed <- err
			}()
			synctest.Wait()
			end(k)
			if err := <-failed; err == nil {
				t.Error("read from a closed conn")
			}
		}
	})
}

// flush waits until everything was sent.
func flush(k *cork) error {
	_, err := k.flush(true)
	return err
}

func TestCorkGathers(t *testing.T) {
	s := &sink{}
	k := startedCork(s)
	var want []byte
	for i := range 40 {
		p := bytes.Repeat([]byte{byte(i)}, 4096)
		write(t, k, p)
		want = append(want, p...)
		clear(p) // copied
	}
	if s.calls != 0 {
		t.Errorf("%d writes before the flush", s.calls)
	}
	if err := flush(k); err != nil {
		t.Fatal(err)
	}
	if s.calls != 1 || !bytes.Equal(s.got.Bytes(), want) {
		t.Errorf("%d bytes with %d writes", s.got.Len(), s.calls)
	}
	if err := flush(k); err != nil || s.calls != 1 {
		t.Errorf("nothing was flushed with %d writes, %v", s.calls, err)
	}
}

// Several messages at once are as many frames and one write.
func TestCorkMessagesTogether(t *testing.T) {
	s := &sink{}
	k := newCork(newWire(s), false)
	k.start(func() {})
	if err := k.putMessages([][]byte{[]byte("one"), []byte("three"), {}}); err != nil {
		t.Fatal(err)
	}
	if err := flush(k); err != nil {
		t.Fatal(err)
	}
	if want := "\x82\x03one\x82\x05three\x82\x00"; s.got.String() != want || s.calls != 1 {
		t.Errorf("%q in %d writes, want %q in one", s.got.String(), s.calls, want)
	}
}

// The header is the shortest for its length (RFC 6455, 5.2), and each frame of a
// client has a mask of its own.
func TestCorkHeaders(t *testing.T) {
	masks := map[string]bool{}
	for _, client := range []bool{false, true} {
		for size, want := range map[int]string{
			0:       "\x82\x00",
			125:     "\x82\x7d",
			126:     "\x82\x7e\x00\x7e",
			1 << 15: "\x82\x7e\x80\x00",
			65535:   "\x82\x7e\xff\xff",
			65536:   "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
		} {
			s := &sink{}
			k := newCork(newWire(s), client)
			k.start(func() {})
			if err := k.putMessages([][]byte{make([]byte, size)}); err != nil {
				t.Fatal(err)
			}
			if err := flush(k); err != nil {
				t.Fatal(err)
			}
			got := s.got.Bytes()
			header := got[:len(want)]
			if client {
				masks[string(got[len(want):][:4])] = true
				header[1] ^= 0x80
			}
			if string(header) != want {
				t.Errorf("client %t, %d bytes: header %x, want %x", client, size, header, want)
			}
		}
	}
	if len(masks) != 6 {
		t.Errorf("%d masks in 6 frames", len(masks))
	}
}

func TestCorkKeepsOrder(t *testing.T) {
	large := func(b byte) []byte { return bytes.Repeat([]byte{b}, refSize) }
	for _, pieces := range [][][]byte{
		{[]byte("h"), large('1')},
		{large('1'), []byte("t")},
		{[]byte("h"), large('1'), []byte("m"), []byte("n"), large('2'), large('3'), []byte("t")},
		{large('1'), large('2')},
	} {
		s := &sink{}
		k := newCork(newWire(s), false)
		k.start(func() {})
		for range 3 { // buffers are reused
			s.got.Reset()
			var want []byte
			for _, p := range pieces {
				if len(p) < refSize {
					write(t, k, p)
				} else {
					if err := k.putMessages([][]byte{p}); err != nil {
						t.Fatal(err)
					}
					want = append(want, finalBinary, 126, byte(len(p)>>8), byte(len(p)))
				}
				want = append(want, p...)
			}
			if err := flush(k); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(s.got.Bytes(), want) {
				t.Errorf("pieces are out of order: %d bytes", s.got.Len())
			}
		}
		for _, b := range []batch{k.filling, k.leaving} {
			refs, vec := b.refs[:cap(b.refs)], b.vec[:cap(b.vec)]
			if slices.ContainsFunc(refs, func(r ref) bool { return r.p != nil }) ||
				slices.ContainsFunc(vec, func(p []byte) bool { return p != nil }) || b.rest != nil {
				t.Error("bytes are kept by reference after the flush")
			}
		}
	}
}

// Control frames do not wait for a flush that is blocked. Pongs are bounded by the
// caller, who asks congested, and one ping at most waits.
func TestCorkDoesNotBlock(t *testing.T) {
	s := &sink{block: make(chan struct{})}
	k := startedCork(s)
	write(t, k, []byte("first"))
	flushed := make(chan error)
	go func() { flushed <- flush(k) }()
	s.block <- struct{}{} // the flush is in Write
	go func() { flushed <- flush(k) }()
	n := 0
	for !k.congested() {
		write(t, k, []byte("pong"))
		n++
	}
	if n < 100 || n > maxControl {
		t.Errorf("congested after %d", n)
	}
	waiting := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.filling.buf)
	}
	before := waiting()
	for range 1000 {
		k.ping()
	}
	if added := waiting() - before; added != 6 { // with its mask
		t.Errorf("%d bytes of pings wait, want one ping", added)
	}
	close(s.block)
	for range 2 {
		if err := <-flushed; err != nil {
			t.Error(err)
		}
	}
	if err := flush(k); err != nil || k.congested() {
		t.Errorf("still congested, %v", err)
	}
}

func TestCorkKicks(t *testing.T) {
	kicked := func(k *cork) bool {
		select {
		case <-k.kick:
			return true
		default:
			return false
		}
	}
	k := startedCork(&sink{})
	if err := k.putMessages([][]byte{[]byte("message")}); err != nil {
		t.Fatal(err)
	}
	if kicked(k) {
		t.Error("kicked for a message, which is flushed by its writer")
	}
	if err := flush(k); err != nil {
		t.Fatal(err)
	}
	write(t, k, []byte("pong"))
	if !kicked(k) {
		t.Error("not kicked for a control frame of the library")
	}
	k.ping()
	if !kicked(k) {
		t.Error("not kicked for a ping")
	}
}

func TestCorkDies(t *testing.T) {
	broken := errors.New("broken")
	k := startedCork(&sink{err: broken})
	write(t, k, make([]byte, refSize))
	if err := flush(k); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := k.Write([]byte("x")); err == nil {
		t.Error("written after death")
	}
	k.ping()
	if err := flush(k); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if !k.filling.empty() || !k.leaving.empty() {
		t.Error("something is kept")
	}
}

func TestCorkPuts(t *testing.T) {
	for _, client := range []bool{true, false} {
		s := &sink{}
		k := newCork(newWire(s), client)
		k.start(func() {})
		k.putClose(1009, "large")
		if err := flush(k); err != nil {
			t.Fatal(err)
		}
		got := s.got.Bytes()
		if client {
			if len(got) != 13 || got[1] != 0x80|7 {
				t.Fatalf("got %x", got)
			}
			mask, payload := got[2:6], got[6:]
			for i := range payload {
				payload[i] ^= mask[i%4]
			}
			got = append(got[:1:1], append([]byte{7}, payload...)...)
		}
		if want := append([]byte{0x88, 7, 0x03, 0xf1}, "large"...); !bytes.Equal(got, want) {
			t.Errorf("got %x, want %x", got, want)
		}
	}
}

func TestReusable(t *testing.T) {
	if got := reusable(make([]byte, 5, maxReuse)); len(got) != 0 || cap(got) != maxReuse {
		t.Errorf("%d of %d bytes are kept", cap(got), maxReuse)
	}
	if got := reusable(make([]byte, 0, maxReuse+1)); got != nil {
		t.Errorf("%d bytes are kept", cap(got))
	}
}

func TestVitalsNote(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		v := newVitals()
		type signs struct{ reading, written, pending, asked, inflow int64 } // times in seconds
		steps := []struct {
			name string
			do   func()
			want signs
		}{
			{"a read begins", v.readBegins, signs{reading: 1}},
			{"it gets bytes", func() { v.readEnds(300) }, signs{inflow: 300}},
			{"another gets more", func() { v.readEnds(5) }, signs{inflow: 305}},
			{"a pong is written", v.wrote, signs{written: 4}},
			{"a message is written", v.wroteMessage, signs{written: 5, pending: 5}},
			{"a second one", v.wroteMessage, signs{written: 6, pending: 5}},
			{"a ping is written", v.wrotePing, signs{written: 7, pending: 5, asked: 7}},
			{"a second one", v.wrotePing, signs{written: 8, pending: 5, asked: 7}},
			{"a read fails", func() { v.readEnds(0) }, signs{written: 8, pending: 5, asked: 7}},
			{"a byte", func() { v.readEnds(1) }, signs{written: 8, inflow: 1}},
			{"a ping comes first", v.wrotePing, signs{written: 11, pending: 11, inflow: 0}},
			{"a message follows", v.wroteMessage, signs{written: 12, pending: 11}},
			{"and a ping", v.wrotePing, signs{written: 13, pending: 11, asked: 13}},
		}
		for _, step := range steps {
			<-time.After(time.Second)
			step.do()
			got := signs{v.reading.Load() / second, v.written.Load() / second, v.pending.Load() / second, v.asked.Load() / second, v.inflow.Load()}
			if got != step.want {
				t.Errorf("%s: got %+v, want %+v", step.name, got, step.want)
			}
		}
	})
}

func TestVitalsNextByte(t *testing.T) {
	v := newVitals()
	first := v.nextByte()
	if second := v.nextByte(); first != second {
		t.Error("two channels for one byte")
	}
	v.readBegins()
	v.readEnds(0)
	select {
	case <-first:
		t.Error("no byte was received")
	default:
	}
	v.readBegins()
	v.readEnds(1)
	<-first
	next := v.nextByte()
	select {
	case <-next:
		t.Error("the byte before counts as the next")
	default:
	}
	if v.reading.Load() != 0 || v.now() <= 0 || v.now() > int64(time.Hour) {
		t.Error("odd times")
	}
}
