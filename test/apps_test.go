package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve runs handle for every connection to a listener of its own and returns the listener's address.
// What is still open at the end of the test is reset.
func serve(t testing.TB, handle func(*net.TCPConn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[*net.TCPConn]struct{})
	)
	wg.Go(func() {
		for {
			accepted, err := listener.Accept()
			if err != nil {
				return
			}
			conn := accepted.(*net.TCPConn)
			mu.Lock()
			conns[conn] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				handle(conn)
				_ = conn.Close()
				mu.Lock()
				delete(conns, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range conns {
			reset(conn)
		}
		mu.Unlock()
		wg.Wait()
	})
	return listener.Addr().String()
}

// connect opens a connection that fails rather than wait for ever.
func connect(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	extend(t, conn, time.Minute)
	return conn.(*net.TCPConn)
}

func extend(t testing.TB, conn net.Conn, d time.Duration) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
}

func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // as good as the close that follows
	_ = conn.Close()
}

func echo(conn *net.TCPConn) {
	if _, err := io.Copy(conn, conn); err == nil {
		_ = conn.CloseWrite()
	}
}

// ping sends a line through an echoing connection and returns how long it took.
func ping(conn net.Conn, text string) (time.Duration, error) {
	started := time.Now()
	if _, err := io.WriteString(conn, text); err != nil {
		return 0, err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		return 0, err
	}
	if string(got) != text {
		return 0, fmt.Errorf("echo of %.40q is %.40q", text, got)
	}
	return time.Since(started), nil
}

func mustPing(t testing.TB, conn net.Conn, text string) time.Duration {
	t.Helper()
	took, err := ping(conn, text)
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// wantReset reads conn to its end, which must be a reset.
func wantReset(t testing.TB, conn net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("after %d bytes: %v, want a reset", n, err)
	}
}

// wantRefused makes a connection to address that must be reset, be it so soon that the dial sees it.
func wantRefused(t testing.TB, address string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err == nil {
		extend(t, conn, patience)
		_, _ = io.WriteString(conn, "early data")
		_, err = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to %s: %v, want a reset", address, err)
	}
}

// wantEnd reads one more byte from conn, where there must be a clean end of file.
func wantEnd(t testing.TB, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v, want a clean end", n, err)
	}
}

// content is an endless sequence of bytes that depends on the seed only.
func content(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// send writes size bytes of a content and ends the direction.
func send(conn *net.TCPConn, seed uint64, size int64) error {
	buf := make([]byte, 64<<10)
	for from := content(seed); size > 0; {
		piece := buf[:min(int64(len(buf)), size)]
		if _, err := io.ReadFull(from, piece); err != nil {
			return err
		}
		n, err := conn.Write(piece)
		size -= int64(n)
		if err != nil {
			return fmt.Errorf("send, %d bytes left: %w", size, err)
		}
	}
	return conn.CloseWrite()
}

// errContent is a byte that is not the one that was sent: the one thing that may never happen.
var errContent = errors.New("wrong byte")

// check reads a connection to its end and compares with a content, byte by byte.
func check(conn net.Conn, seed uint64, size int64) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	from := content(seed)
	for at := int64(0); ; {
		n, err := conn.Read(got)
		if at+int64(n) > size {
			return fmt.Errorf("%w: more than %d bytes", errContent, size)
		}
		if _, err := io.ReadFull(from, want[:n]); err != nil {
			return err
		}
		if !bytes.Equal(got[:n], want[:n]) {
			for i := range n {
				if got[i] != want[i] {
					return fmt.Errorf("%w at offset %d of %d: %#x, not %#x", errContent, at+int64(i), size, got[i], want[i])
				}
			}
		}
		at += int64(n)
		switch {
		case err == io.EOF && at == size:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%w: a clean end after %d of %d bytes", errContent, at, size)
		case err != nil:
			return fmt.Errorf("receive, after %d of %d bytes: %w", at, size, err)
		}
	}
}

// request opens an exchange: what each side will send.
type request struct {
	Seed     uint64 // of what the client sends; the target's is the next one
	Up, Down int64
}

// exchanger is a target that checks what it is sent while it sends what it was asked for, and reports the verdict.
func exchanger(verdicts chan<- error) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		var r request
		if err := binary.Read(conn, binary.LittleEndian, &r); err != nil {
			verdicts <- fmt.Errorf("request: %w", err)
			return
		}
		verdicts <- bothWays(conn, r.Seed+1, r.Down, r.Seed, r.Up)
	}
}

// verdict is what the target of one exchange has to say.
func verdict(verdicts <-chan error) error {
	select {
	case err := <-verdicts:
		return err
	case <-time.After(patience):
		return errors.New("no exchange has ended")
	}
}

// exchange sends and receives at the same time through a connection to an exchanger.
func exchange(conn *net.TCPConn, r request) error {
	if err := binary.Write(conn, binary.LittleEndian, r); err != nil {
		return err
	}
	return bothWays(conn, r.Seed, r.Up, r.Seed+1, r.Down)
}

func bothWays(conn *net.TCPConn, seed uint64, size int64, peerSeed uint64, peerSize int64) error {
	sent := make(chan error, 1)
	go func() { sent <- send(conn, seed, size) }()
	err := check(conn, peerSeed, peerSize)
	if err != nil {
		reset(conn) // ends the other direction too
	}
	return errors.Join(err, <-sent)
}

// digests is a target that answers, at the end of what it is sent, with the SHA-256 of it.
func digests(conn *net.TCPConn) {
	sum := sha256.New()
	if _, err := io.Copy(sum, conn); err != nil {
		return
	}
	_, _ = conn.Write(sum.Sum(nil)) // a client that has left does not want it
}

// upload sends size random bytes to a target that digests and compares the two digests.
func upload(conn *net.TCPConn, seed uint64, size int64) error {
	sum := sha256.New()
	if _, err := io.Copy(conn, io.TeeReader(io.LimitReader(content(seed), size), sum)); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	if !bytes.Equal(got, sum.Sum(nil)) {
		return fmt.Errorf("%w: the target's digest is %x, not %x", errContent, got, sum.Sum(nil))
	}
	return nil
}
