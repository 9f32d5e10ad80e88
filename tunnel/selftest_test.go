package tunnel

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"culvert/mux"
	"culvert/test/bubble"
)

// serveTestStream serves a test stream and returns its opener's end.
func serveTestStream(t *testing.T, target string) (opener *fakeStream, served chan struct{}) {
	t.Helper()
	opener, acceptor := newFakeStreams(mux.Header{Kind: mux.KindTest, Target: target})
	serving := serveTest(acceptor, nil, nil)
	if serving == nil {
		t.Fatalf("%s is not served", target)
	}
	if err := opener.Reply(t.Context()); err != nil {
		t.Fatal(err)
	}
	served = make(chan struct{})
	go func() {
		defer close(served)
		serving()
	}()
	return opener, served
}

func TestTestStreams(t *testing.T) {
	text := strings.Repeat("what is sent ", 1000)
	for _, tt := range []struct{ target, want string }{{testEcho, text}, {testDiscard, ""}} {
		st, served := serveTestStream(t, tt.target)
		go func() {
			_, _ = io.WriteString(st, text)
			_ = st.CloseWrite()
		}()
		got, err := io.ReadAll(st)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %d bytes came back, %v; want %d", tt.target, len(got), err, len(tt.want))
		}
		<-served
		st.Close()
	}
}

func TestTestStreamGenerates(t *testing.T) {
	st, served := serveTestStream(t, testGenerate)
	if n, err := io.CopyN(io.Discard, st, 1<<20); err != nil {
		t.Errorf("%d bytes, then %v", n, err)
	}
	st.Reset(mux.Cancelled, "enough")
	<-served
}

func TestTestStreamUnknown(t *testing.T) {
	opener, acceptor := newFakeStreams(mux.Header{Kind: mux.KindTest, Target: "daytime"})
	if serveTest(acceptor, nil, nil) != nil {
		t.Error("it is served")
	}
	var refusal *mux.Error
	if err := opener.Reply(t.Context()); !errors.As(err, &refusal) || refusal.Code != mux.NotFound {
		t.Errorf("the reply is %v", err)
	}
}

// Nobody is served for ever.
func TestTestStreamEnds(t *testing.T) {
	for _, target := range []string{testEcho, testDiscard, testGenerate} {
		bubble.Test(t, func(t *testing.T) {
			began := time.Now()
			_, served := serveTestStream(t, target)
			<-served
			if took := time.Since(began); took != testTime {
				t.Errorf("%s ended after %v", target, took)
			}
		})
	}
}
