package tunnel

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/link"
)

// A carrier that makes do without a WebSocket is replaced when one may be tried
// again, but not if HTTP is what the user wants.
func TestUpgradeIsTriedAgain(t *testing.T) {
	_, server := startServer(t, nil)
	box := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: server})
		r.Out.Header.Del("Upgrade")
		r.Out.Header.Del("Connection")
	}})
	defer box.Close()
	for mode, least := range map[carrier.Mode]time.Duration{carrier.ModeAuto: time.Second, carrier.ModeHTTP: 0} {
		c, _ := newTestClient(t, strings.TrimPrefix(box.URL, "http://"), func(c *ClientConfig) { c.Carrier = mode })
		s, err := c.newSession(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		life, end := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { s.maintain(life) })
		<-s.opened
		if after := s.replaceAfter(s.link.Carrier()); after < least || after > time.Duration(least.Seconds())*time.Minute {
			t.Errorf("%s: replaced after %v", mode, after)
		}
		closeSession(s.mux, s.link, "end of the test")
		end()
		running.Wait()
		s.cancel()
	}
}

// While the session has a carrier, only its own server is asked for another one.
func TestReplacementComesFromTheSameServer(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer other.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	c, _ := newTestClient(t, strings.TrimPrefix(gone.URL, "http://"), func(c *ClientConfig) {
		c.Servers = append(c.Servers, &url.URL{Scheme: "ws", Host: strings.TrimPrefix(other.URL, "http://")})
		c.Carrier = carrier.ModeWebSocket
	})
	s := &clientSession{client: c, log: c.log, elsewhere: make(chan struct{}, 1)}
	for _, tt := range []struct {
		carrier link.Carrier
		want    int32
	}{{struct{ link.Carrier }{}, 0}, {nil, 1}} {
		s.carrier = tt.carrier
		if _, _, err := s.dial(t.Context(), nil); err == nil {
			t.Fatal("dialled")
		}
		if got := asked.Load(); got != tt.want {
			t.Errorf("the other server was asked %d times, want %d", got, tt.want)
		}
	}
}
