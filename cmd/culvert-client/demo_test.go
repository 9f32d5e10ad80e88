package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// watcher is an output that a test waits on.
type watcher struct {
	mu   sync.Mutex
	text strings.Builder
	news chan struct{} // closed and replaced when there is more
}

func newWatcher() *watcher { return &watcher{news: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.news)
	w.news = make(chan struct{})
	return w.text.Write(p)
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await waits until the text contains part.
func (w *watcher) await(t *testing.T, part string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		text, news := w.text.String(), w.news
		w.mu.Unlock()
		if strings.Contains(text, part) {
			return
		}
		select {
		case <-news:
		case <-timeout:
			t.Fatalf("no %q in:\n%s", part, text)
		}
	}
}

func TestDemoOnce(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	code := run(t.Context(), []string{"culvert-client", "demo", "--once", "--duration", "2s", "--cut-every", "100ms"}, nil, &stdout, &stderr)
	if code != 0 || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %s", code, &stderr)
	}
	for _, pattern := range []string{
		`http://127\.0\.0\.1:\d+ `,
		`cut #1 at \d+ MiB, resumed in \d+\.\d ms\n`,
		`cut #3 at \d+ MiB, resumed in \d+\.\d ms\n`,
		`16 MiB in \d+\.\d s through \d+ cuts\. SHA-256`,
		`Nothing was lost`,
	} {
		if !regexp.MustCompile(pattern).MatchString(stdout.String()) {
			t.Errorf("no %q in the output", pattern)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s", &stdout)
	}
}

// TestDemoGoesOn downloads through the demo as its user would, and then ends it.
func TestDemoGoesOn(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	stdout := newWatcher()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"culvert-client", "demo", "--duration", "100ms", "--cut-every", "100ms"}, nil, stdout, io.Discard)
	}()
	stdout.await(t, "Ctrl-C ends")
	base := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(stdout.String())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (*http.Response, []byte) {
		t.Helper()
		response, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, body
	}
	if _, body := get("/"); !strings.Contains(string(body), "through a culvert") {
		t.Errorf("the page is %s", body)
	}
	response, body := get(downloadPath(3*mib + 1))
	sum := sha256.Sum256(body)
	if len(body) != 3*mib+1 || response.Header.Get(checksumHeader) != hex.EncodeToString(sum[:]) {
		t.Errorf("%d bytes, which do not have the checksum", len(body))
	}
	for _, query := range []string{"", "?bytes=-1", "?bytes=x", "?bytes=1073741825"} {
		if response, _ := get("/download" + query); response.StatusCode != http.StatusBadRequest {
			t.Errorf("/download%s: %s", query, response.Status)
		}
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestDemoInterrupted ends the demo in the middle of its download.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	stdout := newWatcher()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"culvert-client", "demo", "--cut-every", "100ms"}, nil, stdout, io.Discard)
	}()
	stdout.await(t, "cut #2")
	cancel()
	if code := <-ended; code != 0 || strings.Contains(stdout.String(), "Nothing was lost") {
		t.Errorf("exit code %d, stdout:\n%s", code, stdout)
	}
}

func TestDemoUsage(t *testing.T) {
	for _, c := range []runCase{
		{name: "range", args: []string{"demo", "--duration", "0s", "--cut-every", "2h"}, code: 2,
			stderr: []string{"--duration: 0s is out of range; give 10ms to 1m", "--cut-every: 2h0m0s is out of range"}},
		{name: "type", args: []string{"demo", "--duration", "long"}, code: 2, stderr: []string{`invalid value "long" for flag -duration`}},
	} {
		t.Run(c.name, c.check)
	}
}
