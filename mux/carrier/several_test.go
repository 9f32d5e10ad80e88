package carrier_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"culvert/mux/carrier"
)

// However a balancer spreads the requests of a pipe over several servers, the dial says so,
// and before its time is over.
func TestPipeReachesSeveralServers(t *testing.T) {
	_, one := pipesOf(t)
	d, two := pipesOf(t)
	for name, toTwo := range map[string]func(r *http.Request) bool{
		// The server that gets the GET was never written to, and has nothing to say.
		"what is asked for": func(r *http.Request) bool {
			return r.Method == http.MethodGet && r.Header.Get("Culvert-Pipe") != "probe"
		},
		"what is sent": func(r *http.Request) bool { return r.Method == http.MethodPost },
		"the probe":    func(r *http.Request) bool { return r.Header.Get("Culvert-Pipe") == "probe" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				at := one
				if toTwo(r.In) {
					at = two
				}
				r.SetURL(&url.URL{Scheme: "http", Host: at})
			}})
			defer front.Close()
			d := *d
			d.URL, d.Mode, d.Timeout = parseURL(t, front.URL), carrier.ModeHTTP, 20*time.Second
			began := time.Now()
			c, _, err := d.Dial(t.Context(), nil)
			if err == nil { // the probe's answer may come later
				_, err = c.ReadMessage(make([]byte, 100))
				_ = c.Close("")
			}
			if !errors.Is(err, carrier.ErrSeveralServers) || time.Since(began) > 10*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		})
	}
}
