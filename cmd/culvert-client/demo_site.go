package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// checksumHeader has the hexadecimal SHA-256 of a download.
	checksumHeader = "X-Sha256"
	// maxDownload bounds a download in bytes: its checksum is computed before.
	maxDownload = 1 << 30
)

func downloadPath(bytes int64) string { return "/download?bytes=" + strconv.FormatInt(bytes, 10) }

// site is the demo's target: a page, and downloads of any size that are always the
// same and say their checksum.
type site struct {
	addr    string
	server  *http.Server
	running sync.WaitGroup // the server and its handlers
}

func startSite(ctx context.Context) (*site, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0") //nolint:forbidigo // the site that the demonstration visits
	if err != nil {
		return nil, err
	}
	s := &site{addr: listener.Addr().String()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", index)
	mux.HandleFunc("GET /download", download)
	s.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.running.Add(1)
			defer s.running.Done()
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	s.running.Go(func() { _ = s.server.Serve(listener) })
	return s, nil
}

// close ends all connections and waits for their handlers.
func (s *site) close() {
	_ = s.server.Close()
	s.running.Wait()
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html><title>culvert</title><body style="font: 1.2em sans-serif; margin: 4em; max-width: 40em">
<h1>You are reading this through a culvert.</h1>
<p>The WebSocket that carries it is reset every few seconds while you
<a href="%s">download 256 MiB</a>. Your download is not.
The checksum is in the response header %s.</p>
`, downloadPath(256*mib), checksumHeader)
}

func download(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil || size < 0 || size > maxDownload {
		http.Error(w, fmt.Sprintf("bytes must be a number from 0 to %d", maxDownload), http.StatusBadRequest)
		return
	}
	sum := sha256.New()
	_, _ = io.Copy(sum, content(size)) // neither can fail
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.FormatInt(size, 10))
	header.Set(checksumHeader, hex.EncodeToString(sum.Sum(nil)))
	_, _ = io.Copy(w, content(size)) // whoever has left does not want to know
}

// content is size bytes that are the same each time and do not repeat, so that a
// byte lost or given twice cannot go unnoticed.
func content(size int64) io.Reader {
	seed := [32]byte([]byte("culvert demo, the same each time"))
	return io.LimitReader(rand.NewChaCha8(seed), size)
}
