package carrier

import (
	"io"
	"net/http"
	"slices"
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
	if looksOurs(r.Header) {
		own.Header = r.Header.Clone()
		for name := range own.Header {
			if name == "Authorization" || isOurs(name) {
				delete(own.Header, name)
			}
		}
	}
	h.Other.ServeHTTP(&patientWriter{w, writeOn}, &own)
}

// looksOurs reports whether a request may be one of our clients', whatever somebody on
// the way has made of it: many take the Upgrade away.
func looksOurs(header http.Header) bool {
	for name := range header {
		if isOurs(name) {
			return true
		}
	}
	return slices.Contains(headerTokens(header, "Sec-WebSocket-Protocol"), Subprotocol)
}

// isOurs reports whether a header field, in its canonical spelling, is one of ours.
func isOurs(name string) bool { return strings.HasPrefix(name, "Culvert-") }

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
