package tunnel

import (
	"time"

	"culvert/mux"
)

// The targets of mux.KindTest.
const (
	testEcho     = "echo"
	testDiscard  = "discard"
	testGenerate = "chargen"
)

// testTime is how long a test stream may go on.
const testTime = 30 * time.Second

// serveTest makes this end the target of a test stream, and returns what serves
// it.
func serveTest(st stream, u *usage, e *entry) (serving func()) {
	var w mux.TryWriter
	switch st.Header().Target {
	case testEcho:
		w = echo{st}
	case testDiscard, testGenerate:
		w = discard{}
	default:
		unknown := &mux.Error{Code: mux.NotFound, Reason: "no such test"}
		u.targetRefused(e, unknown)
		_ = st.Refuse(unknown.Code, unknown.Reason) // or the stream has ended
		return nil
	}
	e.serve()
	if err := st.Accept(); err != nil {
		st.Close()
		return nil
	}
	return func() {
		limit := time.AfterFunc(testTime, func() { st.Reset(mux.TimedOut, "end of the test") })
		defer limit.Stop()
		ended := make(chan struct{})
		st.Deliver(w, func(int64, error) { close(ended) })
		if st.Header().Target == testGenerate {
			var chunk [32 << 10]byte
			for err := error(nil); err == nil; {
				_, err = st.Write(chunk[:])
			}
		}
		<-ended
		_ = st.CloseWrite() // of a stream that was reset
		st.Close()
	}
}

// echo sends back what is written to it, and makes its writer wait for that.
type echo struct{ stream }

func (echo) TryWrite([]byte) (int, error) { return 0, nil }

type discard struct{}

func (discard) TryWrite(p []byte) (int, error) { return len(p), nil }
func (discard) Write(p []byte) (int, error)    { return len(p), nil }
