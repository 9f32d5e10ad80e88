package carrier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

// messages returns random ones of these sizes.
func messages(sizes ...int) [][]byte {
	random := rand.NewChaCha8([32]byte{byte(len(sizes))})
	v := make([][]byte, len(sizes))
	for i, size := range sizes {
		v[i] = make([]byte, size)
		_, _ = random.Read(v[i])
	}
	return v
}

// several returns messages for one call, other ones for each i.
func several(i int) [][]byte {
	all := [...]int{10, 20_000, 131_072}
	sizes := make([]int, 1+i*5%13)
	for j := range sizes {
		sizes[j] = all[(i+j)%len(all)]
	}
	v := messages(sizes...)
	for _, p := range v {
		p[0] = byte(i)
	}
	return v
}

func clone(v [][]byte) [][]byte {
	v = slices.Clone(v)
	for i, p := range v {
		v[i] = bytes.Clone(p)
	}
	return v
}

// same checks that the messages are what they were before.
func same(t *testing.T, got, want [][]byte) {
	t.Helper()
	for i, p := range got {
		if !bytes.Equal(p, want[i]) {
			t.Errorf("message %d of %d, of %d bytes, was changed", i, len(got), len(p))
		}
	}
}

// fill writes to a peer that does not read until the system takes no more, and
// twice after that. It returns what it has given and what that was.
func fill(t *testing.T, c *carrier.Conn) (given, want [][]byte) {
	t.Helper()
	for i, after := 0, 0; after < 3; i++ {
		if i == 200 {
			t.Fatal("the system seems to take everything")
		}
		v := several(i)
		was := clone(v)
		sent, err := c.WriteMessages(v...)
		if err != nil {
			t.Fatal(err)
		}
		if sent {
			same(t, v, was)
			if after > 0 {
				t.Error("sent, though the socket was full")
			}
		} else {
			after++
		}
		given, want = append(given, v...), append(want, was...)
	}
	return given, want
}

// receive reads messages and checks that they are those of want.
func receive(t *testing.T, c *carrier.Conn, want [][]byte) {
	t.Helper()
	buf := make([]byte, maxMessage)
	for i, p := range want {
		n, err := c.ReadMessage(buf)
		if err != nil {
			t.Fatalf("message %d of %d: %v", i, len(want), err)
		}
		if !bytes.Equal(buf[:n], p) {
			t.Fatalf("message %d of %d: %d bytes, want %d others", i, len(want), n, len(p))
		}
	}
}

// eachWay runs f with both ends of connections of all kinds over TCP.
func eachWay(t *testing.T, f func(t *testing.T, from, to *carrier.Conn)) {
	for _, secure := range []bool{false, true} {
		for _, way := range []string{"up", "down"} {
			t.Run(fmt.Sprintf("tls=%t,%s", secure, way), func(t *testing.T) {
				from, to := carriertest.Pair(t, carriertest.Config{TCP: true, TLS: secure})
				if way == "down" {
					from, to = to, from
				}
				f(t, from, to)
			})
		}
	}
}

// While the peer does not read, WriteMessages returns without having sent; Flush
// sends the rest, and nothing is lost, changed or out of order.
func TestWriteDoesNotBlock(t *testing.T) {
	eachWay(t, func(t *testing.T, from, to *carrier.Conn) {
		from.SetUnsentLimit(16 << 10)
		given, want := fill(t, from)
		flushed := make(chan error, 1)
		go func() { flushed <- from.Flush() }()
		receive(t, to, want)
		if err := <-flushed; err != nil {
			t.Fatal(err)
		}
		same(t, given, want)
		exchange(t, from, to, 100_000)
		exchange(t, to, from, 100_000)
	})
}

// What could not be sent leaves with the next call too.
func TestWriteSendsWhatWaits(t *testing.T) {
	eachWay(t, func(t *testing.T, from, to *carrier.Conn) {
		given, want := fill(t, from)
		received := make(chan struct{})
		go func() {
			defer close(received)
			receive(t, to, append(slices.Clone(want), []byte("last")))
		}()
		last := []byte("last")
		sent, err := from.WriteMessages(last)
		for !sent && err == nil {
			runtime.Gosched()
			sent, err = from.WriteMessages()
		}
		if err != nil {
			t.Fatal(err)
		}
		same(t, given, want)
		<-received
	})
}

// When the Conn ends while messages wait, Flush fails, and gives them back as
// they were.
func TestFlushOfTheDead(t *testing.T) {
	displaced := errors.New("displaced")
	ends := map[string]func(from, to *carrier.Conn){
		"aborted":       func(from, _ *carrier.Conn) { from.Abort(displaced) },
		"reset by peer": func(_, to *carrier.Conn) { to.Abort(nil) },
	}
	for name, end := range ends {
		for _, when := range []string{"before", "meanwhile"} {
			t.Run(name+" "+when, func(t *testing.T) {
				eachWay(t, func(t *testing.T, from, to *carrier.Conn) {
					given, want := fill(t, from)
					var wg sync.WaitGroup
					if when == "before" {
						end(from, to)
					} else {
						wg.Go(func() { end(from, to) })
					}
					err := from.Flush()
					if err == nil || name == "aborted" && !errors.Is(err, displaced) {
						t.Errorf("got %v", err)
					}
					same(t, given, want)
					wg.Wait()
					if err := send(from, []byte{1}); err == nil {
						t.Error("written after death")
					}
				})
			})
		}
	}
}

// A polite end gives the peer a second to read what waits.
func TestFlushAtClose(t *testing.T) {
	for _, secure := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			client, server := carriertest.Pair(t, carriertest.Config{TLS: secure})
			given := slices.Concat(several(8), several(9))
			want := clone(given)
			if sent, err := client.WriteMessages(given...); sent || err != nil {
				t.Fatal(sent, err)
			}
			flushed := make(chan error, 1)
			go func() { flushed <- client.Flush() }()
			synctest.Wait()
			start := time.Now()
			go func() { _ = client.Close("enough") }()
			if err := <-flushed; !errors.Is(err, net.ErrClosed) || time.Since(start) != time.Second {
				t.Errorf("tls=%t: %v after %v", secure, err, time.Since(start))
			}
			same(t, given, want)
			server.Abort(nil)
			_ = client.Close("")
			_ = server.Close("")
		})
	}
}

// Pings that are due while a message is partly sent follow it.
func TestPingsAmongParts(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	eachWay(t, func(t *testing.T, from, to *carrier.Conn) {
		given, want := fill(t, from)
		for range 5 {
			_ = from.Probe(over)
			_ = to.Probe(over)
		}
		done := []<-chan error{read(from)} // and answers pings
		probed := make(chan error, 1)
		go func() { probed <- from.Probe(context.Background()) }()

		// Nobody needs to call Flush for the pings' sake.
		receive(t, to, want)
		if err := from.Flush(); err != nil {
			t.Fatal(err)
		}
		same(t, given, want)
		if err := send(from, []byte("after them")); err != nil {
			t.Fatal(err)
		}
		receive(t, to, [][]byte{[]byte("after them")})
		done = append(done, read(to))
		if err := <-probed; err != nil {
			t.Error(err)
		}
		if err := to.Probe(context.Background()); err != nil {
			t.Error(err)
		}
		from.Abort(nil)
		to.Abort(nil)
		for _, d := range done {
			<-d
		}
	})
}

// What is not a socket of the system's is written to by Flush.
func TestFlushInMemory(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, way := range []string{"up", "down"} {
			from, to := carriertest.Pair(t, carriertest.Config{TLS: secure})
			if way == "down" {
				from, to = to, from
			}
			given := messages(10, 131_072, 0, 20_000, 20_000, 10, 10, 1000, 10, 10, 10)
			want := clone(given)
			if err := send(from, given...); err != nil {
				t.Fatal(err)
			}
			same(t, given, want)
			given = messages(16<<10, 10)
			want = append(want, clone(given)...)
			sent, err := from.WriteMessages(given...)
			if err == nil && !sent {
				var again bool // with nothing to add
				if again, err = from.WriteMessages(); again {
					t.Error("nothing was sent, and then it was")
				}
			}
			if err == nil {
				err = from.Flush()
			}
			if err != nil {
				t.Fatal(err)
			}
			same(t, given, want[len(want)-2:])
			receive(t, to, want)
		}
	}
}

// Close reads, for the peer's close frame, maybe before OnIdle. The race detector
// sees whether that is safe.
func TestCloseBeforeOnIdle(t *testing.T) {
	client, server := carriertest.Pair(t, carriertest.Config{TCP: true})
	done := read(client)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Close("enough") })
	server.OnIdle(func() {})
	<-read(server)
	<-done
	wg.Wait()
}
