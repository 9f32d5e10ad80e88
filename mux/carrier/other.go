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
	later := func() time.Time { return time.Now().Add(bodyPatience) }
	_ = rc.SetWriteDeadline(time.Time{}) // of whoever has to be asked first
	if r.Body == http.NoBody {
		_ = rc.SetReadDeadline(time.Time{}) // when it passes, net/http takes the client for gone
	}
	// What net/http does after this: the rest of the answer, and of the body.
	defer func() {
		_ = rc.SetReadDeadline(later())
		_ = rc.SetWriteDeadline(later())
	}()

	own := *r
	if r.Body != http.NoBody {
		own.Body = &patientBody{r.Body, func() { _ = rc.SetReadDeadline(later()) }, func() { _ = rc.SetReadDeadline(time.Time{}) }}
	}
	if isUpgrade(r) || r.Header.Values(pipeHeader) != nil {
		own.Header = r.Header.Clone()
		for name := range own.Header {
			if name == "Authorization" || strings.HasPrefix(name, "Culvert-") {
				delete(own.Header, name)
			}
		}
	}
	h.Other.ServeHTTP(&patientWriter{w, func() { _ = rc.SetWriteDeadline(later()) }}, &own)
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

func (w *patientWriter) WriteHeader(status int) {
	w.begins()
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// patientBody gives each read its own time, and after the last one there is none.
type patientBody struct {
	io.ReadCloser
	begins, ended func()
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.begins()
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { //nolint:errorlint // as a Reader returns it
		b.ended()
	}
	return n, err
}
