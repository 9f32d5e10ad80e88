package carrier_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"culvert/mux/carrier"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

var errWrongToken = errors.New("wrong token")

func secretOnly(r *http.Request) (carrier.Client, error) {
	if token, ok := carrier.BearerToken(r); !ok || token != "secret" {
		return carrier.Client{}, errWrongToken
	}
	return carrier.Client{Identity: "alice"}, nil
}

// upgradeHeader is that of a request which is accepted.
func upgradeHeader() http.Header {
	return http.Header{
		"Connection":             {"keep-alive, Upgrade"},
		"Upgrade":                {"WebSocket"},
		"Sec-Websocket-Version":  {"13"},
		"Sec-Websocket-Key":      {"dGhlIHNhbXBsZSBub25jZQ=="},
		"Sec-Websocket-Protocol": {"chat, culvert.v1"},
		"Authorization":          {"Bearer secret"},
		"Culvert-Hello":          {"aGk"},
	}
}

func TestHandlerAnswers(t *testing.T) {
	attached := make(chan *carrier.Conn, 1)
	var log logged
	h := &carrier.Handler{
		Path:         "/tunnel",
		Logger:       slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		AllowOrigins: []string{"https://app.example"},
		Authenticate: secretOnly,
		Admit: func(r carrier.Request) (carrier.Admission, error) {
			switch string(r.Hello) {
			case "old":
				return carrier.Admission{}, &carrier.Refusal{Status: 410, Token: carrier.RefusalGone, Text: "session expired"}
			case "odd":
				return carrier.Admission{}, errors.New("something internal")
			case "hi":
				return carrier.Admission{Reply: []byte("ho"), Attach: func(c *carrier.Conn) { attached <- c }}, nil
			}
			t.Errorf("admitted %q", r.Hello)
			return carrier.Admission{}, errors.New("unexpected")
		},
	}
	srv := httptest.NewServer(h)
	defer srv.Close()

	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	del := func(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(name) } }
	tests := []struct {
		name    string
		change  func(*http.Request)
		status  int
		refusal string
		body    string
	}{
		{"good", func(*http.Request) {}, 101, "", ""},
		{"compression offered", set("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"), 101, "", ""},
		{"scheme in capitals", set("Authorization", "BEARER secret"), 101, "", ""},
		{"lists in several lines", func(r *http.Request) {
			r.Header["Connection"] = []string{"keep-alive", "Upgrade"}
			r.Header["Sec-Websocket-Protocol"] = []string{"chat", "culvert.v1"}
		}, 101, "", ""},

		{"wrong path", func(r *http.Request) { r.URL.Path = "/" }, 404, "", ""},
		{"longer path", func(r *http.Request) { r.URL.Path = "/tunnel/" }, 404, "", ""},
		{"no upgrade", del("Upgrade"), 404, "", ""},
		{"connection not upgraded", set("Connection", "keep-alive"), 404, "", ""},
		{"another upgrade", set("Upgrade", "h2c"), 404, "", ""},
		{"another version", set("Sec-WebSocket-Version", "8"), 404, "", ""},
		{"no key", del("Sec-WebSocket-Key"), 404, "", ""},
		{"bad key", set("Sec-WebSocket-Key", "AAAA"), 404, "", ""},
		{"two keys", func(r *http.Request) { r.Header.Add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==") }, 404, "", ""},
		{"no subprotocol", del("Sec-WebSocket-Protocol"), 404, "", ""},
		{"another subprotocol", set("Sec-WebSocket-Protocol", "culvert.v2"), 404, "", ""},
		{"POST", func(r *http.Request) { r.Method = "POST" }, 404, "", ""},
		{"body", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")); r.ContentLength = 1 }, 404, "", ""},

		{"browser", set("Origin", "https://evil.example"), 403, "", "Forbidden"},
		{"browser of the same origin", set("Origin", srv.URL), 403, "", "Forbidden"},
		{"browser without origin", set("Origin", ""), 403, "", "Forbidden"},
		{"browser elsewhere", func(r *http.Request) { r.URL.Path = "/"; r.Header.Set("Origin", "null") }, 404, "", ""},
		{"browser of an allowed origin", set("Origin", "https://app.example"), 101, "", ""},
		{"browser of two origins", func(r *http.Request) { r.Header["Origin"] = []string{"https://app.example", "https://app.example"} }, 403, "", "Forbidden"},
		{"browser of almost an allowed origin", set("Origin", "https://app.example:444"), 403, "", "Forbidden"},
		{"wrong credential from an allowed origin", func(r *http.Request) {
			r.Header.Set("Origin", "https://app.example")
			r.Header.Del("Authorization")
		}, 401, "", "Unauthorized"},

		{"no credential", del("Authorization"), 401, "", "Unauthorized"},
		{"wrong credential", set("Authorization", "Bearer Secret"), 401, "", "Unauthorized"},
		{"another scheme", set("Authorization", "Basic secret"), 401, "", "Unauthorized"},
		{"credential in our own header", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Set("Culvert-Authorization", "Bearer secret")
		}, 101, "", ""},
		{"beside one for somebody in front", func(r *http.Request) {
			r.Header.Set("Authorization", "Basic YTpi")
			r.Header.Set("Culvert-Authorization", "Bearer secret")
		}, 101, "", ""},
		{"wrong one in our own header beside a good one", set("Culvert-Authorization", "Bearer Secret"), 401, "", "Unauthorized"},
		{"empty one in our own header beside a good one", set("Culvert-Authorization", ""), 401, "", "Unauthorized"},
		{"two in our own header", func(r *http.Request) {
			r.Header["Culvert-Authorization"] = []string{"Bearer secret", "Bearer secret"}
		}, 401, "", "Unauthorized"},
		{"two credentials", func(r *http.Request) { r.Header.Add("Authorization", "Bearer secret") }, 401, "", "Unauthorized"},
		{"wrong credential, bad hello", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Del("Culvert-Hello")
		}, 401, "", "Unauthorized"},

		{"no hello", del("Culvert-Hello"), 400, "malformed", "malformed Culvert-Hello"},
		{"two hellos", func(r *http.Request) { r.Header.Add("Culvert-Hello", "aGk") }, 400, "malformed", ""},
		{"bad hello", set("Culvert-Hello", "aG=="), 400, "malformed", ""},
		{"oversized hello", set("Culvert-Hello", strings.Repeat("A", 1368)), 400, "malformed", ""},
		{"refused", set("Culvert-Hello", "b2xk"), 410, "gone", "session expired"},
		{"failing", set("Culvert-Hello", "b2Rk"), 500, "", "Internal Server Error"},
	}
	logs := map[int]string{ // what the line of each answer says
		400: `level=DEBUG msg="request refused" reason="not admitted"`,
		401: `level=DEBUG msg="request refused" reason=credential`,
		403: `level=DEBUG msg="request refused" reason=origin`,
		404: `level=DEBUG msg="request refused" reason="not an upgrade"`,
		410: `level=DEBUG msg="request refused" reason="not admitted"`,
		500: `level=ERROR msg="request refused" reason="not admitted"`,
	}
	transport := &http.Transport{DisableKeepAlives: true}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/tunnel", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = upgradeHeader()
			tt.change(r)
			before := log.String()
			resp, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tt.status || resp.Header.Get("Culvert-Refusal") != tt.refusal {
				t.Errorf("answered %d %q, want %d %q", resp.StatusCode, resp.Header.Get("Culvert-Refusal"), tt.status, tt.refusal)
			}
			if (resp.Header.Get("WWW-Authenticate") == "Bearer") != (tt.status == 401) {
				t.Errorf("WWW-Authenticate %q", resp.Header.Get("WWW-Authenticate"))
			}
			if resp.StatusCode == 101 {
				c := <-attached
				defer c.Close("")
				defer c.Abort(nil)
				if resp.Header.Get("Culvert-Hello") != "aG8" || resp.Header.Get("Sec-WebSocket-Protocol") != "culvert.v1" {
					t.Errorf("answered %v", resp.Header)
				}
				if v := resp.Header.Values("Sec-WebSocket-Extensions"); len(v) != 0 {
					t.Errorf("negotiated %q", v)
				}
				return
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(body), tt.body) {
				t.Errorf("body %q", body)
			}
			if tt.status == 404 {
				sameAsNotFound(t, resp, body)
			}
			line := strings.TrimPrefix(log.String(), before)
			if !strings.Contains(line, logs[tt.status]) || strings.Count(line, "\n") != 1 {
				t.Errorf("logged %q, want one line with %s", line, logs[tt.status])
			}
			if strings.Contains(line, " error=") != (tt.status != 403 && tt.status != 404) {
				t.Errorf("logged %q", line)
			}
		})
	}
}

// sameAsNotFound fails unless resp is what any Go server says.
func sameAsNotFound(t *testing.T, resp *http.Response, body []byte) {
	t.Helper()
	rec := httptest.NewRecorder()
	http.NotFound(rec, httptest.NewRequest("GET", "/", nil))
	want := rec.Result()
	if !bytes.Equal(body, rec.Body.Bytes()) {
		t.Errorf("body %q", body)
	}
	for _, name := range []string{"Date", "Content-Length", "Connection"} {
		resp.Header.Del(name)
	}
	if len(resp.Header) != len(want.Header) {
		t.Errorf("header %v, want %v", resp.Header, want.Header)
	}
	for name := range want.Header {
		if resp.Header.Get(name) != want.Header.Get(name) {
			t.Errorf("%s: %q, want %q", name, resp.Header.Get(name), want.Header.Get(name))
		}
	}
}

func TestBearerToken(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	tests := []struct {
		values []string
		want   string // "": none
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{"Bearer"}, ""},
		{[]string{"Bearer "}, ""},
		{[]string{"Bearer secret"}, "secret"},
		{[]string{"bearer  secret  "}, "secret"},
		{[]string{"Bearer !~"}, "!~"},
		{[]string{"Bearer " + long[:16<<10]}, long[:16<<10]},
		{[]string{"Bearer " + long}, ""},
		{[]string{"Bearer two words"}, ""},
		{[]string{"Bearer tab\t"}, ""},
		{[]string{"Bearer delete\x7f"}, ""},
		{[]string{"Bearer sésame"}, ""},
		{[]string{"Basic secret"}, ""},
		{[]string{"secret"}, ""},
		{[]string{"Bearer secret", "Bearer secret"}, ""},
	}
	for _, tt := range tests {
		got, ok := carrier.BearerToken(&http.Request{Header: http.Header{"Authorization": tt.values}})
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q: got %q, %t, want %q", tt.values, got, ok, tt.want)
		}
	}
}

func TestHandlerRequest(t *testing.T) {
	for _, secure := range []bool{false, true} {
		requests := make(chan carrier.Request, 1)
		attached := make(chan *carrier.Conn, 1)
		srv := httptest.NewUnstartedServer(&carrier.Handler{
			Authenticate: secretOnly,
			Admit: func(r carrier.Request) (carrier.Admission, error) {
				requests <- r
				return carrier.Admission{Reply: bytes.Repeat([]byte{7}, 1024), Attach: func(c *carrier.Conn) { attached <- c }}, nil
			},
		})
		var cfg *tls.Config
		if secure {
			srv.StartTLS()
			pool := x509.NewCertPool()
			pool.AddCert(srv.Certificate())
			cfg = &tls.Config{RootCAs: pool}
		} else {
			srv.Start()
		}
		// The server's own time-outs and the dial's context are not the carrier's.
		ctx, cancel := context.WithCancel(t.Context())
		hello := bytes.Repeat([]byte{200}, 1024)
		d := carrier.Dialer{URL: parseURL(t, srv.URL), Credential: token("secret"), TLS: cfg}
		client, reply, err := d.Dial(ctx, hello)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		r, server := <-requests, <-attached
		if r.Identity != "alice" || r.Secure != secure || !bytes.Equal(r.Hello, hello) || r.Remote != server.RemoteAddr() {
			t.Errorf("got %+v", r)
		}
		if !bytes.Equal(reply, bytes.Repeat([]byte{7}, 1024)) {
			t.Errorf("reply %q", reply)
		}
		if client.Secure() != secure || server.Secure() != secure {
			t.Errorf("secure %t: %t, %t", secure, client.Secure(), server.Secure())
		}
		if _, port, err := net.SplitHostPort(client.RemoteAddr()); err != nil || !strings.HasSuffix(srv.URL, port) {
			t.Errorf("remote %q", client.RemoteAddr())
		}
		exchange(t, client, server, 5)
		exchange(t, server, client, 100_000)
		clientDone, serverDone := read(client), read(server)
		for _, c := range []*carrier.Conn{client, server} {
			if err := c.Probe(t.Context()); err != nil {
				t.Error(err)
			}
		}
		for _, c := range []*carrier.Conn{client, server} {
			c.Abort(nil)
			_ = c.Close("")
		}
		<-clientDone
		<-serverDone
		srv.Close()
	}
}

// The admission is taken back when there is no connection to upgrade.
func TestHandlerCancel(t *testing.T) {
	var log logged
	cancelled := 0
	for _, cancel := range []func(){nil, func() { cancelled++ }} {
		h := &carrier.Handler{
			Admit: func(carrier.Request) (carrier.Admission, error) {
				return carrier.Admission{Attach: func(*carrier.Conn) { t.Error("attached") }, Cancel: cancel}, nil
			},
			Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = upgradeHeader()
		h.ServeHTTP(httptest.NewRecorder(), r) // cannot be hijacked
	}
	if cancelled != 1 {
		t.Errorf("cancelled %d times", cancelled)
	}
	if n := strings.Count(log.String(), "level=DEBUG msg=\"request refused\" reason=upgrade"); n != 2 {
		t.Errorf("logged %q", log.String())
	}
}

// An upgrade is one of HTTP/1.1, whatever server the Handler is used with.
func TestHandlerVersion(t *testing.T) {
	for _, version := range [][2]int{{1, 0}, {2, 0}, {3, 0}} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = upgradeHeader()
		r.ProtoMajor, r.ProtoMinor = version[0], version[1]
		w := httptest.NewRecorder()
		new(carrier.Handler).ServeHTTP(w, r)
		if w.Code != http.StatusNotFound {
			t.Errorf("HTTP/%d.%d: answered %d", version[0], version[1], w.Code)
		}
	}
}
