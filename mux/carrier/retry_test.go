package carrier

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A dial that was answered with Retry-After is not tried in another way, and the error
// says how long to wait. So does that of a proxy.
func TestDialRetryAfter(t *testing.T) {
	var asked atomic.Int32
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer busy.Close()
	at := &url.URL{Scheme: "ws", Host: strings.TrimPrefix(busy.URL, "http://")}
	through := func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: "http", Host: at.Host}, nil }
	for _, d := range []*Dialer{
		{URL: at, Mode: ModeAuto},
		{URL: at, Mode: ModeWebSocket},
		{URL: &url.URL{Scheme: "ws", Host: "culvert.test"}, Proxy: through},
		{URL: at, Mode: ModeHTTP}, // last, since some of its requests may still be under way after it
	} {
		asked.Store(0)
		_, _, err := d.Dial(t.Context(), nil)
		most := int32(1)
		if d.Mode == ModeHTTP { // a pipe begins with several at once
			most = 3
		}
		if got := RetryAfter(err); got != 7*time.Second || asked.Load() > most {
			t.Errorf("%s by way of a proxy %v: %d requests, then %v, retry after %v", d.Mode, d.Proxy != nil, asked.Load(), err, got)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		status int
		header string
		want   time.Duration
	}{
		{429, "7", 7 * time.Second},
		{503, " 120 ", 2 * time.Minute},
		{503, "Fri, 02 Jan 2026 03:05:05 GMT", time.Minute},
		{503, "Friday, 02-Jan-26 03:05:05 GMT", time.Minute},
		{503, "Fri, 02 Jan 2026 03:04:04 GMT", 0},
		{429, "4000000000", time.Hour},
		{429, "Fri, 02 Jan 2099 03:04:04 GMT", time.Hour},
		{429, "99999999999999999999", 0},
		{429, "-1", 0},
		{429, "1.5", 0},
		{429, "soon", 0},
		{429, "", 0},
		{200, "7", 0},
		{404, "7", 0},
		{301, "7", 0},
	} {
		resp := &http.Response{StatusCode: test.status, Header: http.Header{}}
		if test.header != "" {
			resp.Header.Set("Retry-After", test.header)
		}
		if got := retryAfter(resp, now); got != test.want {
			t.Errorf("%d with %q: %v, want %v", test.status, test.header, got, test.want)
		}
	}
	for _, err := range []error{
		&DialError{PhaseUpgrade, "a:1", &RefusedError{RetryAfter: time.Second}},
		&DialError{PhaseProxy, "a:1", &ProxyError{RetryAfter: time.Second}},
	} {
		if got := RetryAfter(err); got != time.Second {
			t.Errorf("%v: %v, want 1s", err, got)
		}
	}
	if got := RetryAfter(nil); got != 0 {
		t.Errorf("nil: %v", got)
	}
}
