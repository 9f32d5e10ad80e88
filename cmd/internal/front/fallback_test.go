package front_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"culvert/cmd/internal/front"
)

// fallback is a front with a web server behind it.
func fallback(t *testing.T, behind http.HandlerFunc) (address string, log *bytes.Buffer) {
	t.Helper()
	site := httptest.NewServer(behind)
	t.Cleanup(site.Close)
	return fallbackTo(t, site.URL)
}

func fallbackTo(t *testing.T, target string) (address string, log *bytes.Buffer) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	log = new(bytes.Buffer)
	f := front.NewFallback(u, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(f.Close)
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), log
}

// answerTo sends a request as it is, and returns the answer.
func answerTo(t *testing.T, address, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// A web server behind gets the request as it was, and is told whose it is.
func TestFallbackPassesOn(t *testing.T) {
	type seen struct {
		method, uri, host, body string
		header                  http.Header
	}
	got := make(chan seen, 1)
	address, _ := fallback(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, r.Host, string(body), r.Header}
		w.Header().Set("Server", "a site")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "tea")
	})
	resp, body := answerTo(t, address, "POST /a%2Fb/%E4?x=1;y=%zz&z HTTP/1.1\r\nHost: tunnel.example\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n"+
		"Authorization: Basic YTpi\r\nOrigin: http://o\r\nTE: deflate\r\nProxy-Connection: x\r\nX-Forwarded-For: 192.0.2.9\r\nContent-Length: 4\r\n\r\nbody")
	if resp.StatusCode != http.StatusTeapot || body != "tea" || resp.Header.Get("Server") != "a site" || resp.Header.Get("Keep-Alive") != "" {
		t.Errorf("answered %s, %v, %q", resp.Status, resp.Header, body)
	}
	s := <-got
	if s.method != "POST" || s.uri != "/a%2Fb/%E4?x=1;y=%zz&z" || s.body != "body" || s.host == "tunnel.example" {
		t.Errorf("passed on %+v", s)
	}
	for name, want := range map[string]string{
		"Authorization": "Basic YTpi", "Origin": "http://o",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "tunnel.example", "X-Forwarded-Proto": "http",
		"X-Hop": "", "Te": "", "Proxy-Connection": "", "User-Agent": "", "Accept-Encoding": "",
	} {
		if values := s.header[name]; strings.Join(values, "|") != want {
			t.Errorf("passed on %s: %q, want %q", name, values, want)
		}
	}
}

// What a trusted proxy in front has said is said again.
func TestFallbackBehindTLS(t *testing.T) {
	got := make(chan http.Header, 1)
	address, _ := fallback(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	answerTo(t, address, "GET / HTTP/1.1\r\nHost: inner\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: outer\r\n\r\n")
	if header := <-got; header.Get("X-Forwarded-Proto") != "https" || header.Get("X-Forwarded-Host") != "outer" {
		t.Error(header)
	}
}

// A web server that names itself, in a hint, an answer or an upgrade, names the front to its visitors.
func TestFallbackHidesTheBackend(t *testing.T) {
	address, _ := fallback(t, func(w http.ResponseWriter, r *http.Request) {
		self := "http://" + r.Host
		w.Header().Set("Link", "<"+self+"/a.css>; rel=preload")
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Set-Cookie", "a=b; Domain=127.0.0.1")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Location", self+r.URL.Path+"/")
		w.Header().Set("Access-Control-Allow-Origin", self)
		w.WriteHeader(http.StatusMovedPermanently)
	})
	request := "GET /docs HTTP/1.1\r\nHost: tunnel.example\r\nX-Forwarded-Proto: https\r\n"
	hint, answer, upgrade := http.Header{"Link": {"</a.css>; rel=preload"}}, http.Header{
		"Link": {"</a.css>; rel=preload"}, "Location": {"/docs/"}, "Access-Control-Allow-Origin": {"https://tunnel.example"},
	}, http.Header{"Link": {"</a.css>; rel=preload"}, "Set-Cookie": {"a=b"}}
	for _, tt := range []struct {
		request string
		want    []http.Header
	}{
		{request + "\r\n", []http.Header{hint, answer}},
		{request + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", []http.Header{upgrade}},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, tt.request)
		r := bufio.NewReader(conn)
		for _, want := range tt.want {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			for name, values := range want {
				if got := resp.Header[name]; strings.Join(got, "|") != values[0] {
					t.Errorf("%s: %s: %q, want %q", resp.Status, name, got, values)
				}
			}
			for name, values := range resp.Header {
				if strings.Contains(strings.Join(values, "|"), "127.0.0.1") {
					t.Errorf("%s: %s: %q", resp.Status, name, values)
				}
			}
		}
	}
}

// The WebSockets of a site work.
func TestFallbackUpgrades(t *testing.T) {
	address, _ := fallback(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_, _ = io.Copy(conn, rw)
	})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	_, _ = io.WriteString(conn, "hello\n")
	if line, err := r.ReadString('\n'); line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// Only WebSockets get a connection of their own to the web server.
func TestFallbackUpgradesToNothingElse(t *testing.T) {
	address, _ := fallback(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Upgrade", "Connection", "Http2-Settings"} {
			if values := r.Header[name]; values != nil {
				t.Errorf("passed on %s: %q", name, values)
			}
		}
		_, _ = io.WriteString(w, r.Method)
	})
	for _, upgrade := range []string{"h2c", "TLS/1.0", "websocket, h2c", "h2c\r\nUpgrade: websocket", "\x80", "websockets"} {
		resp, body := answerTo(t, address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+upgrade+"\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")
		if resp.StatusCode != http.StatusOK || body != "GET" {
			t.Errorf("%q: answered %s, %q", upgrade, resp.Status, body)
		}
	}
	if resp, body := answerTo(t, address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); resp.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("HTTP/2 is answered %s, %q", resp.Status, body)
	}
	// A web server that is eager gets no further.
	address, _ = fallback(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "h2c")
		w.WriteHeader(http.StatusSwitchingProtocols)
	})
	if resp, _ := answerTo(t, address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("an upgrade that nobody passed on is answered %s", resp.Status)
	}
}

// Where a request comes from says this server alone.
func TestFallbackRemovesForwarding(t *testing.T) {
	got := make(chan http.Header, 1)
	address, _ := fallback(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for name, values := range r.Trailer {
			r.Header["Trailer "+name] = values
		}
		got <- r.Header
	})
	kept := []string{"X-Forward", "X-Ip", "Forwarding", "X-Realip-Not"}
	for _, name := range []string{
		"Forwarded", "FORWARDED", "X-Forwarded-For", "x_forwarded_for", "X_Forwarded-For", "X-Forwarded_Host", "X-Forwarded-Server", "X-Forwarded-Port",
		"X-Forwarded-Client-Cert", "X-Forwarded", "X-Original-Forwarded-For", "X-Real-IP", "x_real_ip", "X-Real_IP", "Real-IP", "Client-IP", "X-Client-IP",
		"True-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "X-Originating-IP", "Remote_Addr",
	} {
		answerTo(t, address, "POST / HTTP/1.1\r\nHost: tunnel.example\r\n"+name+": 192.0.2.9\r\n"+strings.Join(kept, ": 192.0.2.9\r\n")+": 192.0.2.9\r\n"+
			"Transfer-Encoding: chunked\r\nTrailer: "+name+"\r\n\r\n0\r\n"+name+": 192.0.2.9\r\n\r\n")
		header := <-got
		for _, ours := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
			if header.Get(ours) == "" || strings.Contains(header.Get(ours), "192.0.2.9") {
				t.Errorf("%s: passed on %s: %q", name, ours, header[ours])
			}
		}
		for passed, values := range header {
			if strings.Contains(strings.Join(values, "|"), "192.0.2.9") != slices.Contains(kept, passed) {
				t.Errorf("%s: passed on %s: %q", name, passed, values)
			}
		}
	}
}

// A site that is not there is what any proxy says then, and one line in the log.
func TestFallbackIsDead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	address, log := fallbackTo(t, "http://"+ln.Addr().String())
	for range 3 {
		if resp, body := answerTo(t, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 502 || body != "Bad Gateway\n" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN msg=\"fallback does not answer\"") {
		t.Errorf("logged %q", text)
	}
}

// Nobody gets anywhere but to the site.
func TestFallbackIsNoOpenProxy(t *testing.T) {
	hosts := make(chan string, 1)
	address, _ := fallback(t, func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host + r.RequestURI })
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it went elsewhere") }))
	defer elsewhere.Close()
	other := elsewhere.Listener.Addr().String()
	if resp, _ := answerTo(t, address, "CONNECT "+other+" HTTP/1.1\r\nHost: "+other+"\r\n\r\n"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT is answered %s", resp.Status)
	}
	answerTo(t, address, "GET http://"+other+"/a HTTP/1.1\r\nHost: "+other+"\r\n\r\n")
	if got := <-hosts; strings.HasPrefix(got, other) || !strings.HasSuffix(got, "/a") {
		t.Errorf("an absolute URL is passed on as %q", got)
	}
}

// localhost is both loopback addresses, and the one that has answered comes first.
func TestFallbackAtLocalhost(t *testing.T) {
	at := func(ip, port, name string) (*httptest.Server, string) {
		t.Helper()
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		site := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close") // the next request is another connection
			_, _ = io.WriteString(w, name)
		}))
		site.Listener.Close()
		site.Listener = ln
		site.Start()
		t.Cleanup(site.Close)
		_, port, _ = net.SplitHostPort(ln.Addr().String())
		return site, port
	}
	site, port := at("::1", "0", "site")
	address, _ := fallbackTo(t, "http://LocalHost.:"+port)
	want := func(name string) {
		t.Helper()
		if _, body := answerTo(t, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); body != name {
			t.Errorf("answered %q, want %q", body, name)
		}
	}
	want("site")
	at("127.0.0.1", port, "other")
	want("site")
	site.Close()
	want("other")
}
