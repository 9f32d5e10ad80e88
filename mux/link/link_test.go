package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/link/linktest"
	"culvert/test/bubble"
)

// ends is a client and a server link with the pipes between them, and what a
// test can do to them. It lives in a synctest bubble.
type ends struct {
	t          *testing.T
	registry   *Registry
	client     *Link
	server     *Link
	pipes      []*linktest.Pipe
	refuse     error        // what dial returns
	silent     bool         // new pipes deliver nothing
	answer     func(*reply) // if not nil, changes the next answer
	resumed    []bool
	lost       []error
	pauses     []time.Duration
	maintained chan error
	mu         sync.Mutex
}

// connect makes the ends and waits until they are attached.
func connect(t *testing.T, client, server Config) *ends {
	return connectAs(t, client, server, Redial{})
}

// connectAs is connect with more in the Redial.
func connectAs(t *testing.T, client, server Config, r Redial) *ends {
	e := &ends{t: t, maintained: make(chan error, 1)}
	opened := make(chan *Link, 8)
	e.registry = NewRegistry(RegistryConfig{Config: server, Open: func(l *Link, _, _ string) {
		opened <- l
		<-l.Done()
	}})
	e.client = New(client)
	handle(e.client, nil)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		r.Dial = e.dial
		r.Attached = func(resumed bool, _ Carrier) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.resumed = append(e.resumed, resumed)
		}
		r.Lost = func(err error, next time.Duration) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.lost = append(e.lost, err)
			e.pauses = append(e.pauses, next)
		}
		e.maintained <- e.client.Maintain(ctx, r)
	}()
	e.server = <-opened
	handle(e.server, nil)
	t.Cleanup(func() {
		e.client.Close("over")
		cancel()
		e.registry.Stop()
		e.registry.Wait()
	})
	return e
}

func (e *ends) dial(ctx context.Context, hello []byte) (Carrier, []byte, error) {
	e.mu.Lock()
	refuse := e.refuse
	e.mu.Unlock()
	if refuse == errHang {
		<-ctx.Done()
		return nil, nil, context.Cause(ctx)
	}
	if refuse != nil {
		return nil, nil, refuse
	}
	reply, attach, _, err := e.registry.Admit("alice", "test", false, hello)
	if err != nil {
		return nil, nil, err
	}
	p := linktest.NewPipe(8, false)
	e.mu.Lock()
	e.pipes = append(e.pipes, p)
	if e.silent {
		p.Hold(true, true)
		p.Hold(false, true)
	}
	if e.answer != nil {
		r, _ := decodeReply(reply)
		e.answer(&r)
		reply, e.answer = r.encode(), nil
	}
	e.mu.Unlock()
	attach(p.Server)
	return p.Client, reply, nil
}

func (e *ends) pipe() *linktest.Pipe {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pipes[len(e.pipes)-1]
}

// mute has new pipes deliver nothing.
func (e *ends) mute(on bool) {
	e.mu.Lock()
	e.silent = on
	e.mu.Unlock()
}

// errHang makes dials hang instead.
var errHang = errors.New("hang")

func (e *ends) hang() { e.setRefuse(errHang) }

func (e *ends) setRefuse(err error) {
	e.mu.Lock()
	e.refuse = err
	e.mu.Unlock()
}

// say sends text from one end and expects it at the other.
func (e *ends) say(from, to *Link, text string) {
	e.t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		e.t.Fatalf("write: %v", err)
	}
	e.hear(to, text)
}

func (e *ends) hear(to *Link, text string) {
	e.t.Helper()
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(to, buf); err != nil || string(buf) != text {
		e.t.Fatalf("read %q, %v; want %q", buf, err, text)
	}
}

func TestDefaults(t *testing.T) {
	for _, test := range []struct{ config, want Config }{
		{Config{}, Config{time.Minute, 16 << 20, 128 << 10, 2 << 20, nil}},
		{Config{time.Second, 1 << 20, 64 << 10, 3, nil}, Config{time.Second, 1 << 20, 64 << 10, 3, nil}},
		{Config{time.Second, 1, 1, 1, nil}, Config{time.Second, 64 << 10, 4 << 10, 1, nil}},
		{Config{-1, -1, -1, -1, nil}, Config{time.Minute, 16 << 20, 128 << 10, 2 << 20, nil}},
		{Config{MaxMessage: 1 << 20}, Config{time.Minute, 16 << 20, 128 << 10, 2 << 20, nil}},
	} {
		got := test.config.withDefaults()
		if got.Logger == nil {
			t.Errorf("%+v has no logger", test.config)
		}
		if got.Logger = nil; got != test.want {
			t.Errorf("%+v became %+v, want %+v", test.config, got, test.want)
		}
	}
}

func TestResumeSendsTheRest(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "hello")
		time.Sleep(time.Second) // acknowledged: the carrier was good for something
		e.pipe().Hold(true, true)
		io.WriteString(e.client, " world") // under way when the carrier is cut
		synctest.Wait()
		e.pipe().Cut()
		e.hear(e.server, " world")
		e.say(e.server, e.client, "back")
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.resumed) != 2 || e.resumed[0] || !e.resumed[1] {
			t.Errorf("attached %v, want first and resumed", e.resumed)
		}
		if len(e.pauses) != 1 || e.pauses[0] != 0 {
			t.Errorf("redial after %v, want at once", e.pauses)
		}
	})
}

// A peer may have received a part of a message. The message is sent again as a
// whole, and the peer drops the part that it knows.
func TestResumeInsideAMessage(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "first")
		e.pipe().Hold(true, true)
		io.WriteString(e.client, "hello world")
		synctest.Wait()
		e.mu.Lock()
		e.answer = func(r *reply) { r.received += uint64(len("hello")) }
		e.mu.Unlock()
		e.pipe().Cut()
		e.hear(e.server, "hello world") // this server has nothing of it yet, and so drops nothing
		e.say(e.client, e.server, "and on")
		if err := e.client.Flush(nil); err != nil {
			t.Error(err)
		}
	})
}

// The acknowledgement that Flush waits for may come with the next handshake.
func TestFlushEndsAtResume(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.pipe().Hold(false, true) // the server's acknowledgements do not arrive
		e.say(e.client, e.server, "hello")
		flushed := make(chan error, 1)
		stop := make(chan struct{})
		go func() { flushed <- e.client.Flush(stop) }()
		synctest.Wait()
		e.pipe().Cut()
		start := time.Now()
		time.AfterFunc(5*time.Second, func() { close(stop) })
		if err := <-flushed; err != nil || time.Since(start) >= 5*time.Second {
			t.Errorf("flush ended after %v with %v", time.Since(start), err)
		}
	})
}

// Without a carrier for the resume window, both ends end. The client's is not
// longer than the server's.
func TestExpiry(t *testing.T) {
	t.Run("server's", func(t *testing.T) { testExpiry(t, time.Hour, 7*time.Second, 7*time.Second) })
	t.Run("client's", func(t *testing.T) { testExpiry(t, 7*time.Second, time.Hour, 7*time.Second) })
}

func testExpiry(t *testing.T, client, server, want time.Duration) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{ResumeWindow: client}, Config{ResumeWindow: server})
		e.say(e.client, e.server, "x")
		e.setRefuse(errors.New("no route"))
		start := time.Now()
		e.pipe().Cut()
		for _, end := range []struct {
			name string
			*Link
			want time.Duration
		}{{"client", e.client, want}, {"server", e.server, server}} {
			name, l := end.name, end.Link
			<-l.Done()
			if took := time.Since(start); took != end.want || !errors.Is(l.Err(), ErrExpired) {
				t.Errorf("%s ended after %v with %v, want %v after %v", name, took, l.Err(), ErrExpired, end.want)
			}
			if _, err := l.Read(make([]byte, 1)); !errors.Is(err, ErrExpired) {
				t.Errorf("%s: read %v", name, err)
			}
			if _, err := l.Write([]byte("x")); !errors.Is(err, ErrExpired) {
				t.Errorf("%s: write %v", name, err)
			}
		}
		if err := <-e.maintained; !errors.Is(err, ErrExpired) {
			t.Errorf("Maintain: %v", err)
		}
	})
}

// A full replay buffer makes writers wait and loses nothing.
func TestBackPressure(t *testing.T) {
	cut := func(e *ends) {
		e.setRefuse(errors.New("no route"))
		e.pipe().Cut()
	}
	silence := func(e *ends) { e.pipe().Hold(false, true) }
	all := func(l *Link, p []byte) (int, error) { return l.Write(p) }
	frames := func(l *Link, p []byte) (n int, err error) {
		for n < len(p) && err == nil {
			if err = l.writeFrame(p[n:n+8], p[n+8:n+20_000]); err == nil {
				n += 20_000
			}
		}
		return n, err
	}
	t.Run("no carrier", func(t *testing.T) { testBackPressure(t, cut, all) })
	t.Run("no carrier, frames", func(t *testing.T) { testBackPressure(t, cut, frames) })
	t.Run("no acknowledgement", func(t *testing.T) { testBackPressure(t, silence, all) })
	t.Run("no acknowledgement, frames", func(t *testing.T) { testBackPressure(t, silence, frames) })
}

func testBackPressure(t *testing.T, stop func(*ends), write func(*Link, []byte) (int, error)) {
	bubble.Test(t, func(t *testing.T) {
		const limit = 256 << 10
		e := connect(t, Config{ReplayBuffer: limit}, Config{})
		e.say(e.client, e.server, "x")
		stop(e)
		data := bytes.Repeat([]byte("0123456789"), 100_000)
		written := make(chan int, 1)
		go func() {
			n, err := write(e.client, data)
			if err != nil {
				t.Errorf("write: %v", err)
			}
			written <- n
		}()
		synctest.Wait()
		e.client.mu.Lock()
		held := e.client.out.held
		e.client.mu.Unlock()
		if held > limit+writePiece+overhead {
			t.Errorf("%d bytes held, limit %d", held, limit)
		}
		select {
		case <-written:
			t.Fatal("writer did not wait")
		default:
		}
		e.setRefuse(nil)
		e.pipe().Hold(false, false)
		e.hear(e.server, string(data))
		if n := <-written; n != len(data) {
			t.Errorf("%d of %d bytes written", n, len(data))
		}
	})
}

// No more is under way than the path holds, and an empty message does not hide
// that there is more to send.
func TestPathLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := New(Config{})
		r := &recorder{Carrier: linktest.NewPipe(8, false).Client}
		att, _, err := l.attach(r, terms{maxMessage: 8 << 10, checksum: true})
		if err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.pace.rate, l.pace.rtt = 1, time.Millisecond
		l.mu.Unlock()
		if err := l.post([][]byte{make([]byte, 256<<10)}); err != nil {
			t.Fatal(err)
		}
		const most = minPath + 8<<10
		// How much the peer has not acknowledged, after how many writes.
		sent := func() (bytes uint64, writes int) {
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.att == nil {
				t.Fatalf("carrier lost: %v", att.err)
			}
			return uint64(len(r.data)) - l.out.acked, len(r.batches)
		}
		under, before := sent()
		if under < minPath || under > most {
			t.Errorf("%d bytes under way, want %d to %d", under, minPath, most)
		}
		time.Sleep(time.Second) // it says its offset
		if _, writes := sent(); writes != before+1 {
			t.Errorf("%d writes in a second without an acknowledgement, want one", writes-before)
		}
		if _, err := l.receive(att, message{kind: typeData, ack: under}); err != nil {
			t.Fatal(err)
		}
		l.Send()
		if n, _ := sent(); n == 0 {
			t.Errorf("nothing more sent after the acknowledgement of %d bytes", under)
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}

// Many small messages fill the replay buffer too, by what each costs.
func TestSmallMessagesFill(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{ReplayBuffer: 64 << 10}, Config{})
		e.pipe().Hold(false, true) // nothing is acknowledged
		n := 0
		for ; !e.client.Full(); n++ {
			if n == 1000 {
				t.Fatalf("not full after %d messages", n)
			}
			if err := e.client.post([][]byte{{1}}); err != nil {
				t.Fatal(err)
			}
			e.hear(e.server, "\x01")
		}
	})
}

// Who found the link full is told once when there is room, and Append does not
// wait meanwhile.
func TestRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		told := 0
		reading(e.client).roomed = func() {
			told++
			if e.client.Full() {
				t.Error("told of room in a full link")
			}
		}
		e.say(e.client, e.server, "x")
		e.setRefuse(errors.New("down"))
		e.pipe().Cut()
		synctest.Wait()
		data := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
		var want []byte
		for !e.client.Full() {
			if err := e.client.post([][]byte{data[:100], data[100:]}); err != nil {
				t.Fatal(err)
			}
			want = append(want, data...)
		}
		if len(want) != maxUnsent {
			t.Errorf("full after %d bytes, want %d", len(want), maxUnsent)
		}
		synctest.Wait()
		if told != 0 {
			t.Error("told of room in a link without a carrier")
		}
		e.setRefuse(nil)
		e.hear(e.server, string(want))
		e.say(e.client, e.server, "and more")
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times of room, want once", told)
		}
		e.client.Close("over")
		if err := e.client.post([][]byte{data}); !errors.Is(err, ErrClosed) {
			t.Errorf("Append after Close: %v", err)
		}
	})
}

// A peer that has answers queue up without end loses the link, whatever the link may keep.
func TestOverrun(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const most = 1 << 20
		l := New(Config{MaxOverrun: most})
		p := make([]byte, 32<<10)
		var err error
		n := 0
		for ; err == nil && n < 10*most; n += len(p) {
			err = l.Append([][]byte{p})
		}
		if !errors.Is(err, ErrOverrun) || n < most || n > most+most/2 {
			t.Errorf("%v after %d bytes, want %v after about %d", err, n, ErrOverrun, most)
		}
		if err := l.Err(); !errors.Is(err, ErrOverrun) || l.out.held != 0 {
			t.Errorf("the link ended with %v and holds %d bytes", err, l.out.held)
		}
		l.Wait()
	})
}

// memory is a budget of links.
type memory struct {
	used   int64
	scarce bool
}

func (m *memory) Charge(n int64) { m.used += n }
func (m *memory) Spare() bool    { return !m.scarce }

// What a link keeps to send it again counts for a budget, and when memory is scarce it
// keeps half a MiB.
func TestAccount(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l, m := New(Config{}), new(memory)
		l.Account(m)
		for i, full := range []bool{false, true} {
			if err := l.Append([][]byte{make([]byte, 300<<10)}); err != nil {
				t.Fatal(err)
			}
			for l.out.next < len(l.out.queue) { // as if it were under way
				_, s := l.out.take(0, sendSample{})
				s.release()
			}
			m.scarce = false
			if l.Full() {
				t.Errorf("%d: full with memory to spare", i)
			}
			if m.scarce = true; l.Full() != full {
				t.Errorf("%d: full %v when memory is scarce and %d bytes are kept", i, !full, l.out.held)
			}
			if lags := int64(l.out.held) - m.used; lags < 0 || lags >= accountEvery {
				t.Errorf("%d bytes are kept, %d accounted", l.out.held, m.used)
			}
		}
		l.Close("over")
		if m.used != 0 {
			t.Errorf("%d bytes accounted after the end", m.used)
		}

		e := connect(t, Config{}, Config{})
		m = new(memory)
		e.client.Account(m)
		e.say(e.client, e.server, strings.Repeat("x", 200<<10))
		time.Sleep(time.Second)
		if m.used >= accountEvery {
			t.Errorf("%d bytes accounted after all was acknowledged", m.used)
		}
	})
}

// recorder is a carrier that notes how many messages were written together.
type recorder struct {
	*linktest.Carrier
	busy    chan struct{} // if not nil, a write waits for it
	batches []int
	data    []byte
	limits  []int // of unsent bytes
}

func (r *recorder) SetUnsentLimit(n int) { r.limits = append(r.limits, n) }

func (r *recorder) WriteMessages(v ...[]byte) (sent bool, err error) {
	r.batches = append(r.batches, len(v))
	for _, p := range v {
		m, err := parse(p, true)
		if err != nil || m.offset != uint64(len(r.data)) {
			return false, fmt.Errorf("message at %d after %d bytes, %w", m.offset, len(r.data), err)
		}
		r.data = append(r.data, m.payload...)
	}
	return r.busy == nil, nil
}

func (r *recorder) Flush() error {
	<-r.busy
	return nil
}

// What gathered while there was no carrier, or while it was busy, leaves with
// few writes.
func TestBatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := New(Config{})
		data := make([]byte, 60_000) // 15 messages, since the peer has not said that it takes larger ones
		for i := range data {
			data[i] = byte(i >> 8)
		}
		if err := l.post([][]byte{data}); err != nil {
			t.Fatal(err)
		}
		r := &recorder{Carrier: linktest.NewPipe(8, false).Client}
		if _, _, err := l.attach(r, terms{maxMessage: MaxMessage, checksum: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !bytes.Equal(r.data, data) {
			t.Errorf("%d bytes sent, want %d", len(r.data), len(data))
		}
		if want := []int{8, 7}; !slices.Equal(r.batches, want) {
			t.Errorf("batches of %v messages, want %v", r.batches, want)
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}

// On a slow path less is written at once, so that acknowledgements and what is
// more urgent need not wait.
func TestBatchesOnSlowPath(t *testing.T) {
	for _, tt := range []struct {
		rate     float64
		messages int
		want     []int // with the first, which says what was received
	}{
		{rate: 1e9, messages: 6, want: []int{1, 3, 3}},
		{rate: 1e6, messages: 6, want: []int{1, 3, 3}},
		{rate: 0, messages: 6, want: []int{1, 5}},
	} {
		bubble.Test(t, func(t *testing.T) {
			l := New(Config{})
			r := &recorder{Carrier: linktest.NewPipe(8, false).Client, busy: make(chan struct{})}
			if _, _, err := l.attach(r, terms{maxMessage: MaxMessage, checksum: true}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // it says what it has received
			l.mu.Lock()
			l.pace.rate = tt.rate
			l.pace.rtt = time.Second
			size := tt.messages * (l.pace.message() - headerSize - trailerSize)
			l.mu.Unlock()
			if err := l.post([][]byte{make([]byte, size)}); err != nil {
				t.Fatal(err)
			}
			close(r.busy)
			synctest.Wait()
			if !slices.Equal(r.batches, tt.want) {
				t.Errorf("%.0f bytes/s: batches of %v messages, want %v", tt.rate, r.batches, tt.want)
			}
			l.abandon(ErrClosed)
			l.Wait()
		})
	}
}

// The carrier's socket is told when what may wait in it changes by half.
func TestSocketLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := New(Config{})
		r := &recorder{Carrier: linktest.NewPipe(8, false).Client}
		if _, _, err := l.attach(r, terms{maxMessage: MaxMessage, checksum: true}); err != nil {
			t.Fatal(err)
		}
		for _, rate := range []float64{0, 10e6, 15e6, 7e6, 27e6, 14e6, 5e6, fastRate, 2 * fastRate, 10e6} {
			l.mu.Lock()
			l.pace.rate = rate
			l.mu.Unlock()
			if err := l.post([][]byte{make([]byte, 1)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if want := []int{128 << 10, 270_000, 50_000, 0, 100_000}; !slices.Equal(r.limits, want) {
			t.Errorf("limits %v, want %v", r.limits, want)
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}

// A refused resumption ends the link and says so.
func TestGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "x")
		e.server.abandon(errors.New("server crashed"))
		if err := <-e.maintained; !errors.Is(err, ErrGone) {
			t.Errorf("Maintain: %v, want gone", err)
		}
		if !errors.Is(e.client.Err(), ErrGone) {
			t.Errorf("link: %v, want gone", e.client.Err())
		}
	})
}

// The peer learns that the link was closed, and why, after all that was sent.
func TestClose(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		io.WriteString(e.server, "last words")
		synctest.Wait() // it has nothing else to do
		start := time.Now()
		reason := strings.Repeat("maintenance ", 100)
		e.server.Close(reason)
		if took := time.Since(start); took != 0 {
			t.Errorf("closed after %v, want at once", took)
		}
		e.hear(e.client, "last words")
		_, err := e.client.Read(make([]byte, 1))
		var closed *ClosedByPeerError
		if !errors.As(err, &closed) || closed.Reason != reason[:maxReason] {
			t.Errorf("read: %v", err)
		}
		e.client.Close("again")
		e.client.abandon(ErrLimit)
		if err := e.client.Err(); !errors.As(err, &closed) {
			t.Errorf("ended with %v, want the first reason", err)
		}
	})
}

// Of several who close a link, also while it is being closed, the first says why.
func TestCloseTwice(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.pipe().Hold(true, true)
		for !e.server.Full() {
			if err := e.server.post([][]byte{make([]byte, 64<<10)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		var closing sync.WaitGroup
		for _, reason := range []string{"first", "second"} {
			closing.Go(func() { e.server.Close(reason) })
			synctest.Wait()
		}
		e.server.mu.Lock()
		told := e.server.bye
		e.server.mu.Unlock()
		closing.Wait()
		if told != "first" {
			t.Errorf("the client is told %q, want the first reason", told)
		}
	})
}

// A carrier that takes nothing holds up the end for a second, in which nothing
// more can be written; without a carrier there is nothing to wait for.
func TestCloseStuck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "x")
		e.pipe().Hold(true, true)
		for !e.client.Full() {
			if err := e.client.post([][]byte{make([]byte, 64<<10)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		start := time.Now()
		closed := make(chan struct{})
		go func() {
			e.client.Close("over")
			close(closed)
		}()
		synctest.Wait()
		if err := e.client.post([][]byte{{1}}); !errors.Is(err, ErrClosed) {
			t.Errorf("write to a link that closes: %v, want %v", err, ErrClosed)
		}
		<-closed
		if took := time.Since(start); took != time.Second {
			t.Errorf("closed after %v, want a second", took)
		}
		if err := <-e.maintained; !errors.Is(err, ErrClosed) {
			t.Errorf("Maintain: %v, want %v", err, ErrClosed)
		}
		start = time.Now()
		l := New(Config{})
		l.Close("never used")
		if took := time.Since(start); took != 0 || !errors.Is(l.Err(), ErrClosed) {
			t.Errorf("without a carrier: closed after %v with %v", took, l.Err())
		}
	})
}

func TestFlush(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.pipe().Hold(true, true)
		io.WriteString(e.client, "slow")
		stop := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(stop) })
		if err := e.client.Flush(stop); err == nil {
			t.Error("flushed although nothing arrived")
		}
		e.pipe().Hold(true, false)
		if err := e.client.Flush(nil); err != nil {
			t.Errorf("flush: %v", err)
		}
		e.pipe().Hold(true, true)
		io.WriteString(e.client, "lost")
		time.AfterFunc(time.Second, func() { e.client.abandon(ErrExpired) })
		if err := e.client.Flush(nil); !errors.Is(err, ErrExpired) {
			t.Errorf("flush of a link that ends: %v, want %v", err, ErrExpired)
		}
	})
}

// What arrives is acknowledged within 20 ms, and much of it at once.
func TestAcknowledgement(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		unacknowledged := func() uint64 {
			synctest.Wait()
			e.client.mu.Lock()
			defer e.client.mu.Unlock()
			return e.client.out.outstanding()
		}
		go io.Copy(io.Discard, struct{ io.Reader }{e.server})
		for i, size := range []int{1, 4 << 20, 1} {
			if _, err := e.client.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if n := unacknowledged(); n >= maxAck {
				t.Errorf("%d bytes written: %d unacknowledged at once, want less than %d", size, n, maxAck)
			}
			if n := unacknowledged(); i > 0 && size == 1 && n == 0 {
				t.Error("one byte acknowledged at once, want to wait for more")
			}
			time.Sleep(20 * time.Millisecond)
			if n := unacknowledged(); n != 0 {
				t.Errorf("%d bytes written: %d unacknowledged after 20 ms", size, n)
			}
		}
	})
}

// Acknowledgements say what the path is like.
func TestMeasures(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		go io.Copy(io.Discard, struct{ io.Reader }{e.server})
		send := func(n int) { // on a path that takes a second
			e.pipe().Hold(true, true)
			if err := e.client.post([][]byte{make([]byte, n)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			e.pipe().Hold(true, false)
			if err := e.client.Flush(nil); err != nil {
				t.Fatal(err)
			}
		}
		if rtt, rate := e.client.RoundTrip(), e.client.Bandwidth(); rtt != 0 || rate != 0 {
			t.Errorf("%v and %.0f bytes/s before the first message", rtt, rate)
		}
		send(1)
		if rtt := e.client.RoundTrip(); rtt < time.Second || rtt > time.Second+ackDelay {
			t.Errorf("round trip of %v, want a second", rtt)
		}
		send(4 << 20)
		if rate := e.client.Bandwidth(); rate < 0.5e6 {
			t.Errorf("%.0f bytes/s, want a million at least", rate)
		}
	})
}

// A new carrier is not used before the goroutines of the former have let go of
// it, and of the messages.
func TestAttachWaitsForFormer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := New(Config{})
		former := &recorder{Carrier: linktest.NewPipe(8, false).Client, busy: make(chan struct{})}
		next := &recorder{Carrier: linktest.NewPipe(8, false).Client}
		if _, _, err := l.attach(former, terms{maxMessage: MaxMessage, checksum: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it writes
		attached := make(chan error, 1)
		go func() {
			_, _, err := l.attach(next, terms{maxMessage: MaxMessage, checksum: true})
			attached <- err
		}()
		synctest.Wait()
		select {
		case err := <-attached:
			t.Errorf("attached, %v, while the former carrier writes", err)
		default:
		}
		close(former.busy)
		if err := <-attached; err != nil {
			t.Errorf("attach: %v", err)
		}
		l.abandon(ErrClosed)
		l.Wait()
	})
}

// A new carrier takes over from one that still looks alive to the server.
func TestDisplace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		e.say(e.client, e.server, "x")
		e.pipe().CutUnnoticed()
		e.say(e.client, e.server, "y")
		e.say(e.server, e.client, "z")
		if got := e.registry.Len(); got != 1 {
			t.Errorf("%d sessions, want 1", got)
		}
	})
}

// Lost, repeated and damaged messages cost a carrier at most, never a byte.
func TestBrokenCarriers(t *testing.T) {
	faults := map[string]func(m []byte) [][]byte{
		"flip":      func(m []byte) [][]byte { m[len(m)/2] ^= 4; return [][]byte{m} },
		"flip head": func(m []byte) [][]byte { m[3] ^= 1; return [][]byte{m} },
		"drop":      func([]byte) [][]byte { return nil },
		"duplicate": func(m []byte) [][]byte { return [][]byte{m, m} },
		"truncate":  func(m []byte) [][]byte { return [][]byte{m[:len(m)-1]} },
		"empty":     func([]byte) [][]byte { return [][]byte{{}} },
		"too large": func(m []byte) [][]byte {
			big := append(bytes.Clone(m[:headerSize]), make([]byte, minMaxMessage)...)
			return [][]byte{seal(big, true)}
		},
		"garbage": func([]byte) [][]byte { return [][]byte{bytes.Repeat([]byte{1}, 100)} },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := connect(t, Config{}, Config{MaxMessage: minMaxMessage})
				e.say(e.client, e.server, "before")
				once := false
				e.pipe().Filter(true, func(m []byte) [][]byte {
					if once {
						return [][]byte{m}
					}
					once = true
					return fault(m)
				})
				start := time.Now()
				e.say(e.client, e.server, "during")
				e.say(e.client, e.server, "after")
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("noticed after %v", took)
				}
				if want := 2 - b2i(name == "duplicate"); len(e.pipes) != want {
					t.Errorf("%d carriers used, want %d", len(e.pipes), want)
				}
			})
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The back-off grows to its cap with jitter, and is forgotten only after a
// carrier that was good for something.
func TestBackoff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{ResumeWindow: time.Hour}, Config{ResumeWindow: time.Hour})
		e.say(e.client, e.server, "x")
		time.Sleep(time.Second)
		e.setRefuse(&net.OpError{Op: "dial", Err: errors.New("refused")})
		e.pipe().Cut()
		time.Sleep(10 * time.Minute)
		e.mu.Lock()
		pauses := e.pauses
		e.pauses = nil
		e.mu.Unlock()
		if pauses[0] != 0 {
			t.Errorf("first pause %v, want none", pauses[0])
		}
		var sum time.Duration
		for i, p := range pauses[1:] {
			if limit := min(defaultMaxBackoff, defaultMinBackoff<<min(i, 20)); p > limit {
				t.Errorf("pause %d is %v, at most %v", i, p, limit)
			}
			sum += p
		}
		if n := len(pauses); n < 30 || n > 120 {
			t.Errorf("%d attempts in ten minutes (pauses of %v in all)", n, sum)
		}
	})
}

// A path that cuts idle carriers soon does not make the client stay away long.
func TestBackoffOfShortCarriers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		for range 50 {
			<-time.After(900 * time.Millisecond) // of the bubble
			e.pipe().Cut()
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := len(e.pauses); n < 20 {
			t.Errorf("%d carriers lost", n)
		}
		for i, p := range e.pauses {
			if p > defaultMinBackoff<<attachedFailures {
				t.Errorf("pause %d is %v", i, p)
			}
		}
	})
}

func TestMaintainFatal(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		refused := errors.New("401")
		l := New(Config{})
		tries := 0
		err := l.Maintain(t.Context(), Redial{
			Dial: func(context.Context, []byte) (Carrier, []byte, error) {
				if tries++; tries < 3 {
					return nil, nil, errors.New("no route")
				}
				return nil, nil, refused
			},
			Fatal: func(err error) bool { return errors.Is(err, refused) },
		})
		if !errors.Is(err, refused) || tries != 3 {
			t.Errorf("Maintain: %v after %d tries", err, tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = l.Maintain(ctx, Redial{Dial: func(context.Context, []byte) (Carrier, []byte, error) {
			return nil, nil, refused
		}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Maintain: %v, want the context's end", err)
		}
	})
}

// hello of a session that nobody has heard of.
func strangeHello(resume bool) []byte {
	return hello{id: newSessionID(), resume: resume, maxMessage: MaxMessage}.encode()
}

func TestAdmit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{})
		known := hello{id: e.client.id, resume: true, maxMessage: MaxMessage}
		if _, _, _, err := e.registry.Admit("mallory", "test", false, known.encode()); !errors.Is(err, ErrGone) {
			t.Errorf("another identity resumes: %v", err)
		}
		if _, _, _, err := e.registry.Admit("alice", "test", false, strangeHello(true)); !errors.Is(err, ErrGone) {
			t.Errorf("unknown session resumes: %v", err)
		}
		flipped := strangeHello(false)
		flipped[20] ^= 1
		if _, _, _, err := e.registry.Admit("alice", "test", false, flipped); !errors.Is(err, ErrMalformed) {
			t.Errorf("flipped bit: %v", err)
		}
		future := strangeHello(false)[:helloSize-trailerSize]
		future[0] = 9
		if _, _, _, err := e.registry.Admit("alice", "test", false, seal(future, true)); !errors.Is(err, ErrVersion) {
			t.Errorf("future version: %v", err)
		}
		known.received = 1 << 40
		if _, _, _, err := e.registry.Admit("alice", "test", false, known.encode()); !errors.Is(err, ErrMalformed) {
			t.Errorf("an offset that was never sent: %v", err)
		}
		e.say(e.client, e.server, "still there")

		e.registry.Stop()
		if _, _, _, err := e.registry.Admit("alice", "test", false, strangeHello(false)); !errors.Is(err, ErrStopping) {
			t.Errorf("new session while stopping: %v", err)
		}
		e.pipe().Cut()
		e.say(e.client, e.server, "resumed while stopping")
	})
}

func TestSessionLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRegistry(RegistryConfig{MaxSessions: 3, MaxPerIdentity: 2})
		open := func(identity string) (*linktest.Pipe, error) {
			_, attach, _, err := r.Admit(identity, "test", false, strangeHello(false))
			if err != nil {
				return nil, err
			}
			p := linktest.NewPipe(8, false)
			attach(p.Server)
			synctest.Wait()
			return p, nil
		}
		first, _ := open("alice")
		if _, err := open("alice"); err != nil {
			t.Fatal(err)
		}
		if _, err := open("alice"); !errors.Is(err, ErrLimit) {
			t.Errorf("third session of an identity: %v", err)
		}
		if _, err := open("bob"); err != nil {
			t.Errorf("another identity: %v", err)
		}
		if _, err := open("carol"); !errors.Is(err, ErrLimit) {
			t.Errorf("fourth session: %v", err)
		}
		// What a client left behind does not lock it out.
		first.Cut()
		synctest.Wait()
		if _, err := open("alice"); err != nil {
			t.Errorf("instead of a detached session: %v", err)
		}
		if n := r.Len(); n != 3 {
			t.Errorf("%d sessions", n)
		}
		// An upgrade that fails leaves nothing behind.
		r2 := NewRegistry(RegistryConfig{})
		_, _, cancel, err := r2.Admit("alice", "test", false, strangeHello(false))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if n := r2.Len(); n != 0 {
			t.Errorf("%d sessions after a failed upgrade", n)
		}
		r.mu.Lock()
		for _, s := range r.sessions {
			s.link.abandon(errors.New("over"))
		}
		r.mu.Unlock()
		r.Wait()
	})
}

func FuzzParse(f *testing.F) {
	m := make([]byte, headerSize, 64)
	putHeader(m, typeData, 7, 9)
	f.Add(append(m, "payload"...), false)
	f.Add(seal(append([]byte(nil), m...), true), true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, checksum bool) {
		m, err := parse(b, checksum)
		if err != nil {
			if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrChecksum) {
				t.Errorf("error of no known kind: %v", err)
			}
			return
		}
		again := make([]byte, headerSize, len(b)+trailerSize)
		putHeader(again, m.kind, m.offset, m.ack)
		if again = seal(append(again, m.payload...), checksum); !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add(strangeHello(true))
	f.Add(reply{maxMessage: MaxMessage}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, sealed := range [][]byte{b, seal(bytes.Clone(b), true)} {
			if h, err := decodeHello(sealed); err == nil && len(sealed) == helloSize {
				if again, err := decodeHello(h.encode()); err != nil || again != h {
					t.Errorf("hello %+v became %+v, %v", h, again, err)
				}
			}
			if r, err := decodeReply(sealed); err == nil && len(sealed) == replySize {
				if again, err := decodeReply(r.encode()); err != nil || again != r {
					t.Errorf("reply %+v became %+v, %v", r, again, err)
				}
			}
		}
	})
}

// FuzzOutbox drives an outbox with arbitrary operations beside a model that
// keeps the whole stream.
func FuzzOutbox(f *testing.F) {
	f.Add([]byte{0, 200, 1, 0, 2, 3, 0, 0, 255, 1, 1, 3, 9, 2, 7})
	f.Fuzz(func(t *testing.T, ops []byte) {
		o := outbox{maxMessage: minMaxMessage}
		var stream []byte // all that was appended
		arrived := 0      // what the peer has, in order
		maxSent := 0
		for i := 0; i+1 < len(ops); i += 2 {
			arg := int(ops[i+1])
			switch ops[i] % 4 {
			case 0: // append
				p := make([]byte, arg*37)
				for j := range p {
					p[j] = byte(len(stream) + j)
				}
				o.append(p)
				stream = append(stream, p...)
			case 1: // send one message, which arrives or not
				if o.next == len(o.queue) {
					if o.unsent != 0 {
						t.Fatalf("%d bytes unsent, but nothing to take", o.unsent)
					}
					continue
				}
				b, s := o.take(0, sendSample{})
				if len(b)+trailerSize > minMaxMessage {
					t.Fatalf("message of %d bytes", len(b))
				}
				m, err := parse(b, false)
				if err != nil {
					t.Fatal(err)
				}
				end := int(m.offset) + len(m.payload)
				if !bytes.Equal(m.payload, stream[m.offset:end]) {
					t.Fatalf("wrong bytes at %d", m.offset)
				}
				maxSent = max(maxSent, end)
				if arg%2 == 0 && int(m.offset) <= arrived {
					arrived = max(arrived, end)
				}
				s.release()
			case 2: // acknowledge something that arrived
				acked := int(o.acked) + (arrived-int(o.acked))*arg/255
				if _, err := o.ack(uint64(acked)); err != nil {
					t.Fatal(err)
				}
			case 3: // cut and resume
				if err := o.rewind(uint64(arrived)); err != nil {
					t.Fatal(err)
				}
				if o.unsent < len(stream)-arrived {
					t.Fatalf("%d of %d bytes to be sent again", o.unsent, len(stream)-arrived)
				}
			}
			if _, err := o.ack(uint64(maxSent) + 1); err == nil {
				t.Fatal("acknowledged bytes never sent")
			}
		}
		o.discard()
	})
}

func BenchmarkLink(b *testing.B) {
	for _, size := range []int{64, 32 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			r := NewRegistry(RegistryConfig{})
			l := New(Config{})
			hello := hello{id: l.id, secure: true, maxMessage: MaxMessage}.encode()
			rep, attach, _, err := r.Admit("alice", "bench", true, hello)
			if err != nil {
				b.Fatal(err)
			}
			p := linktest.NewPipe(8, true)
			attach(p.Server)
			got, err := decodeReply(rep)
			if err != nil {
				b.Fatal(err)
			}
			if _, _, err := l.attach(p.Client, terms{peerReceived: got.received, maxMessage: MaxMessage}); err != nil {
				b.Fatal(err)
			}
			r.mu.Lock()
			var server *Link
			for _, s := range r.sessions {
				server = s.link
			}
			r.mu.Unlock()
			handle(l, nil)
			received := 0
			server.Handle(func(p []byte) { received += len(p) }, nil)
			frame := [][]byte{make([]byte, size)}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			sent := 0
			for b.Loop() {
				for l.Full() {
					runtime.Gosched()
				}
				if err := l.post(frame); err != nil {
					b.Fatal(err)
				}
				sent += size
			}
			if err := l.Flush(nil); err != nil || received != sent {
				b.Errorf("%d of %d bytes received, %v", received, sent, err)
			}
			l.Close("over")
			r.Wait()
		})
	}
}
