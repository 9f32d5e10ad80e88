package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// What goes in comes out, whatever the sizes, and no more than the limit waits.
func TestQueue(t *testing.T) {
	const limit = 100_000
	q := newQueue(limit, nil)
	random := rand.New(rand.NewPCG(1, 2))
	sent := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), random.IntN(150_000))
			if m, err := q.write(nil, rest[:n]); m != n || err != nil { //nolint:staticcheck // nil: the conn
				t.Errorf("wrote %d of %d: %v", m, n, err)
			}
			rest = rest[n:]
		}
		q.finish()
	}()
	turn, _ := q.begin(0)
	var got []byte
	buf := make([]byte, 70_000)
	for {
		n, err := q.ready(t.Context(), turn)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || n > limit {
			t.Fatalf("%d bytes wait: %v", n, err)
		}
		if n, err = q.readTurn(turn, buf[:1+len(got)%len(buf)]); err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, sent) {
		t.Error("it came out differently")
	}
	if q.chunks != nil || !q.over() {
		t.Error("an empty queue keeps memory")
	}
}

// Several may write the same bytes at once.
func TestQueueWriteAt(t *testing.T) {
	q := newQueue(10, nil)
	sent := []byte("all that is sent comes out once")
	for i := range 5 {
		go func() {
			if n, err := q.writeAt(t.Context(), 0, sent[:len(sent)-i]); n != len(sent)-i || err != nil {
				t.Errorf("wrote %d: %v", n, err)
			}
		}()
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(readerFunc(func(p []byte) (int, error) { return q.read(nil, p) }), got); err != nil || string(got) != string(sent) { //nolint:staticcheck // nil: the conn
		t.Errorf("%q, %v", got, err)
	}
	if _, err := q.writeAt(t.Context(), int64(len(sent)+1), sent); !errors.Is(err, errGap) {
		t.Errorf("a gap: %v", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Deadlines, contexts and ends wake those who wait.
func TestQueueWaits(t *testing.T) {
	b := make([]byte, 10)
	conn := context.Context(nil)
	for name, c := range map[string]struct {
		wait func(q *queue) error
		end  func(q *queue)
		want error
	}{
		"read deadline": {func(q *queue) error { _, err := q.read(conn, b); return err }, nil, os.ErrDeadlineExceeded},
		"write deadline": {func(q *queue) error {
			n, err := q.write(conn, make([]byte, 9))
			if n != 5 {
				t.Errorf("%d bytes", n)
			}
			return err
		}, nil, os.ErrDeadlineExceeded},
		"failed":   {func(q *queue) error { _, err := q.read(conn, b); return err }, func(q *queue) { q.fail(net.ErrClosed) }, net.ErrClosed},
		"finished": {func(q *queue) error { _, err := q.read(conn, b); return err }, (*queue).finish, io.EOF},
		"write after the end": {
			func(q *queue) error { _, err := q.write(conn, make([]byte, 9)); return err },
			(*queue).finish, net.ErrClosed,
		},
		"context": {func(q *queue) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := q.ready(ctx, 0)
			return err
		}, func(*queue) {}, context.DeadlineExceeded},
		"another's turn": {
			func(q *queue) error { _, err := q.ready(context.Background(), 0); return err },
			func(q *queue) { q.begin(0) }, errTurn,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				q := newQueue(5, nil)
				started := time.Now()
				if c.end == nil {
					q.setDeadline(started.Add(time.Hour))
				}
				done := make(chan error, 1)
				go func() { done <- c.wait(q) }()
				synctest.Wait()
				if c.end == nil {
					q.setDeadline(started.Add(time.Second))
				} else {
					time.AfterFunc(time.Second, func() { c.end(q) })
				}
				if err := <-done; !errors.Is(err, c.want) || time.Since(started) != time.Second {
					t.Errorf("%v after %v, want %v", err, time.Since(started), c.want)
				}
				q.setDeadline(time.Time{})
				q.fail(io.ErrClosedPipe)
			})
		})
	}
}

// Only who has read everything may read on.
func TestQueueTurns(t *testing.T) {
	q := newQueue(100, nil)
	_, _ = q.write(nil, []byte("abc")) //nolint:staticcheck // nil: the conn
	first, ok := q.begin(0)
	if _, bad := q.begin(1); !ok || bad {
		t.Error("a wrong offset was let in")
	}
	if n, err := q.readTurn(first, make([]byte, 2)); n != 2 || err != nil {
		t.Error(n, err)
	}
	if _, ok := q.begin(0); ok {
		t.Error("bytes were lost and nobody minds")
	}
	if _, ok := q.begin(2); !ok {
		t.Error("the next was not let in")
	}
	if _, err := q.readTurn(first, make([]byte, 2)); !errors.Is(err, errTurn) {
		t.Error(err)
	}
}

// Bodies grow while they are quick, shrink when they are slow, and never again
// become what did not pass.
func TestBodySize(t *testing.T) {
	b := bodySize{size: firstBody, most: maxBody}
	for range 100 {
		b.took(b.size, time.Millisecond)
	}
	if b.size != maxBody {
		t.Errorf("grew to %d", b.size)
	}
	b.took(100, time.Minute) // which says nothing about sizes
	if b.size != maxBody {
		t.Errorf("shrank to %d", b.size)
	}
	for range 100 {
		b.took(b.size, time.Second)
	}
	if b.size != 16<<10 {
		t.Errorf("shrank to %d", b.size)
	}
	b = bodySize{size: firstBody, most: maxBody}
	for b.tooLarge(b.size) && b.size > 50_000 {
		continue
	}
	most := b.size
	for range 100 {
		b.took(b.size, time.Millisecond)
	}
	if b.size > 50_000 || b.size != most {
		t.Errorf("grew to %d from %d", b.size, most)
	}
	for range 100 {
		b.tooLarge(b.size)
	}
	if b.tooLarge(b.size) || b.size != minBody {
		t.Errorf("%d is not the least", b.size)
	}
}

// A long way makes bodies no smaller, only a slow one does.
func TestBodySizeOnALongWay(t *testing.T) {
	b := bodySize{size: firstBody, most: maxBody}
	const way = 600 * time.Millisecond
	b.took(500, way)
	for range 20 {
		b.took(b.size, way+50*time.Millisecond)
	}
	if b.size != maxBody {
		t.Errorf("bodies of %d bytes", b.size)
	}
	for range 20 {
		b.took(b.size, way+time.Second)
	}
	if b.size != smallBody {
		t.Errorf("bodies of %d bytes on a slow way", b.size)
	}
}

// A few bytes that are cut say nothing about many.
func TestBodySizeCut(t *testing.T) {
	b := bodySize{size: firstBody, most: maxBody}
	b.cut(1100)
	if b.size != firstBody || b.most != maxBody {
		t.Errorf("after a cut of 1100 bytes: %+v", b)
	}
	for range 20 {
		b.cut(b.size)
	}
	if b.size != smallBody || b.most != smallBody {
		t.Errorf("after many cuts: %+v", b)
	}
}
