package carrier_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/test/bubble"
)

const (
	heartbeat = 20 * time.Second
	timeout   = 10 * time.Second
)

// after waits; in a bubble only.
func after(d time.Duration) { <-time.After(d) }

// inBubble runs f with a pair over path in a bubble, for ws and wss.
func inBubble(t *testing.T, f func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn)) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%t", secure), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				path := carriertest.NewPath()
				client, server := carriertest.Pair(t, carriertest.Config{Path: path, TLS: secure})
				f(t, path, client, server)
				for _, c := range []*carrier.Conn{client, server} {
					c.Abort(nil)
					_ = c.Close("")
				}
			})
		})
	}
}

func alive(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s died: %v", what, err)
	default:
	}
}

// Two idle ends keep the path open with a ping from each every 20 s, no more.
func TestIdleIsAlive(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		clientDone, serverDone := read(client), read(server)
		up, down := path.Written()
		after(time.Hour)
		up2, down2 := path.Written()
		const frames = 2 * int(time.Hour/heartbeat) // pings and pongs
		frame := 6
		if client.Secure() {
			frame += 22
		}
		for _, n := range []int{up2 - up, down2 - down} {
			if n < (frames-2)*2 || n > frames*frame {
				t.Errorf("%d bytes in an hour of silence, want %d frames", n, frames)
			}
		}
		alive(t, "client", clientDone)
		alive(t, "server", serverDone)
	})
}

// A path that swallows everything is noticed by both ends: within interval and
// timeout when idle, within the timeout when something was written.
func TestHalfDead(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Second, 7 * time.Second, 19 * time.Second, 25 * time.Second, 95 * time.Second} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v,busy=%t", idle, busy), func(t *testing.T) {
				inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
					clientDone, serverDone := read(client), read(server)
					after(idle)
					synctest.Wait()
					path.Stall()
					start, limit := time.Now(), heartbeat+timeout
					if busy {
						limit = timeout
						for _, c := range []*carrier.Conn{client, server} {
							if err := send(c, []byte("anybody there?")); err != nil {
								t.Fatal(err)
							}
						}
					}
					for _, done := range []<-chan error{clientDone, serverDone} {
						err := <-done
						if !errors.Is(err, carrier.ErrHeartbeat) {
							t.Errorf("died of %v", err)
						}
					}
					took := time.Since(start)
					if took > limit || took < timeout/2 {
						t.Errorf("noticed after %v, limit %v", took, limit)
					}
					if err := send(client, []byte{}); !errors.Is(err, carrier.ErrHeartbeat) {
						t.Errorf("write: %v", err)
					}
				})
			})
		}
	}
}

// A write that is stuck in a dead path ends too.
func TestHalfDeadWriter(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		clientDone, serverDone := read(client), read(server)
		path.Stall()
		start := time.Now()
		if err := <-writeForever(client); !errors.Is(err, carrier.ErrHeartbeat) || time.Since(start) > timeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		<-clientDone
		<-serverDone
	})
}

// An end that does not read for minutes is not dead, to neither: the other one
// waits in its write, and this one knows that it is not reading.
func TestReaderThatPauses(t *testing.T) {
	for _, pauses := range []string{"client", "server"} {
		t.Run(pauses, func(t *testing.T) {
			inBubble(t, func(t *testing.T, _ *carriertest.Path, from, to *carrier.Conn) {
				if pauses == "client" {
					from, to = to, from
				}
				fromDone := read(from)
				const messages = 100
				written := make(chan error, 1)
				go func() {
					for i := range messages {
						p := make([]byte, 50_000)
						p[0] = byte(i)
						if err := send(from, p); err != nil {
							written <- err
							return
						}
					}
					written <- nil
				}()
				buf := make([]byte, maxMessage)
				for i := range messages {
					if i%20 == 0 {
						after(5 * time.Minute)
					}
					if _, err := to.ReadMessage(buf); err != nil || buf[0] != byte(i) {
						t.Fatalf("message %d: %d, %v", i, buf[0], err)
					}
				}
				if err := <-written; err != nil {
					t.Fatal(err)
				}
				alive(t, "writer", fromDone)
			})
		})
	}
}

// On a path so slow that a message, or the buffers before it, take longer than
// the timeout, both ends still hear from one another.
func TestSlowPath(t *testing.T) {
	for _, way := range []string{"up", "down"} {
		t.Run(way, func(t *testing.T) {
			inBubble(t, func(t *testing.T, path *carriertest.Path, from, to *carrier.Conn) {
				slow := path.Slow
				if way == "down" {
					from, to = to, from
					slow = path.SlowDown
				}
				fromDone := read(from)
				slow(1000)
				start := time.Now()
				go func() {
					for range 4 {
						_ = send(from, make([]byte, 120_000))
					}
				}()
				buf := make([]byte, maxMessage)
				for i := range 4 {
					if _, err := to.ReadMessage(buf); err != nil {
						t.Fatalf("message %d after %v: %v", i, time.Since(start), err)
					}
				}
				if took := time.Since(start); took < 4*time.Minute {
					t.Fatalf("took %v: not slow", took)
				}
				alive(t, "writer", fromDone)
			})
		})
	}
}

// Bytes of any kind are life: a peer that only ever sends is not dead.
func TestOneWayTraffic(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *carriertest.Path, client, server *carrier.Conn) {
		clientDone, serverDone := read(client), read(server)
		for range 1000 {
			if err := send(client, []byte("tick")); err != nil {
				t.Fatal(err)
			}
			after(300 * time.Millisecond)
		}
		alive(t, "client", clientDone)
		alive(t, "server", serverDone)
	})
}
