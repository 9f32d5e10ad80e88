package carrier

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// other answers what is not ours. With hide, a request that looks like ours is passed on
// without the credential and our headers. A stranger must not see that happen where he
// is to find an ordinary web site, which does not care what is in such a header.
func (h *Handler) other(w http.ResponseWriter, r *http.Request, hide bool) {
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
		own.Body = &patientBody{ReadCloser: r.Body, begins: readOn}
	}
	if hide && looksOurs(r.Header) {
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

// WriteHeader may be of a hint, which is sent at once.
func (w *patientWriter) WriteHeader(status int) {
	w.begins()
	w.ResponseWriter.WriteHeader(status)
}

// FlushError is for http.ResponseController: it may send a header that nothing follows.
func (w *patientWriter) FlushError() error {
	w.begins()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// patientBody gives each read its own time. When there is no more to read, net/http
// waits without one for the client to go away.
type patientBody struct {
	io.ReadCloser
	begins func()
	over   error // what the last Read has returned
}

func (b *patientBody) Read(p []byte) (n int, err error) {
	if b.over != nil { // a time now would be for the client's going away
		return 0, b.over
	}
	b.begins()
	n, b.over = b.ReadCloser.Read(p)
	return n, b.over
}
