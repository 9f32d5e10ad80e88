package carrier

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// other answers what is not ours.
func (h *Handler) other(w http.ResponseWriter, r *http.Request) {
	if h.Other == nil {
		http.NotFound(w, r)
		return
	}
	rc := http.NewResponseController(w)
	readOn := func() { _ = rc.SetReadDeadline(time.Now().Add(bodyPatience)) }
	writeOn := func() { _ = rc.SetWriteDeadline(time.Now().Add(bodyPatience)) }
	defer func() { // net/http still sends the end of the answer, and reads that of the body
		readOn()
		writeOn()
	}()
	own := *r
	if r.Body != http.NoBody {
		own.Body = &patientBody{r.Body, readOn}
	}
	if isUpgrade(r) || r.Header.Values(pipeHeader) != nil {
		own.Header = r.Header.Clone()
		for name := range own.Header {
			if name == "Authorization" || strings.HasPrefix(name, "Culvert-") {
				delete(own.Header, name)
			}
		}
	}
	h.Other.ServeHTTP(&patientWriter{w, writeOn}, &own)
}

// patientWriter gives each write its own time.
type patientWriter struct {
	http.ResponseWriter
	begins func()
}

func (w *patientWriter) Write(p []byte) (int, error) {
	w.begins()
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// patientBody gives each read its own time. When there is no more to read, net/http
// waits without one for the client to go away.
type patientBody struct {
	io.ReadCloser
	begins func()
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.begins()
	return b.ReadCloser.Read(p)
}
