//go:build !race

package mux

import (
	"bytes"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"
)

// 50,000 streams of one session work, in little memory, and the last as the first.
// With the race detector it would take a minute, and measure that.
func TestManyStreams(t *testing.T) {
	const n = 50_000
	cfg := Config{MaxStreams: n + 1}
	p := newPair(t, cfg, cfg)
	// The acceptor's ends echo without a goroutine each.
	var ended sync.WaitGroup
	ended.Add(n)
	serving := make(chan error, 1)
	go func() {
		for range n {
			st, err := p.server.Accept(t.Context())
			if err == nil {
				err = st.Accept()
			}
			if err != nil {
				serving <- err
				return
			}
			st.Deliver(patient{st}, func(_ int64, err error) {
				if err == nil {
					err = st.CloseWrite()
				}
				switch {
				case CodeOf(err) == Cancelled: // counted below
				case err != nil:
					t.Errorf("stream %d: %v", st.ID(), err)
				default:
					ended.Done()
				}
			})
		}
		serving <- nil
	}()
	var memory [2]runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory[0])
	streams := make([]*Stream, n)
	for i := range streams {
		st, err := p.client.Open(t.Context(), Header{Kind: KindDial, Target: "target:1"})
		if err != nil {
			t.Fatal(err)
		}
		streams[i] = st
	}
	if err := <-serving; err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&memory[1])
	each := (memory[1].HeapAlloc + memory[1].StackInuse - memory[0].HeapAlloc - memory[0].StackInuse) / n
	t.Logf("%d bytes for both ends of a stream", each)
	if each > 8<<10 {
		t.Errorf("%d bytes for both ends of a stream, want 8 KiB at most", each)
	}
	for i, st := range streams {
		if i%10 != 0 && i != n-1 {
			st.Close()
			ended.Done()
			continue
		}
		b := []byte{byte(i), byte(i >> 8)}
		if _, err := st.Write(b); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2)
		if _, err := io.ReadFull(st, got); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("stream %d: %x, %v, want %x", i, got, err, b)
		}
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Read(got); err != io.EOF {
			t.Fatalf("stream %d ends with %v", i, err)
		}
	}
	ended.Wait()
	for started := time.Now(); p.client.NumStreams()+p.server.NumStreams() > 0; runtime.Gosched() {
		if time.Since(started) > 20*time.Second {
			t.Fatalf("%d and %d streams left", p.client.NumStreams(), p.server.NumStreams())
		}
	}
}
