package carrier_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"culvert/mux/carrier"
)

// culvert is a handler that upgrades as a server does, to a carrier that it leaves
// alone.
func culvert(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Culvert-Hello", "AA")
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{carrier.Subprotocol}})
	if err != nil {
		return
	}
	_, _, _ = c.Read(r.Context())
	_ = c.CloseNow()
}

// dialed dials and closes, and returns the error of the dial.
func dialed(t *testing.T, d *carrier.Dialer) error {
	t.Helper()
	c, _, err := d.Dial(t.Context(), []byte("hello"))
	if err == nil {
		c.Abort(nil)
		_ = c.Close("")
	}
	return err
}

// listening is a server on loopback, as a ws URL.
func listening(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return strings.Replace(srv.URL, "http", "ws", 1)
}

func TestDialFollowsRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, base := range []string{"", "http://HOST", "//HOST", "ws://HOST"} {
			t.Run(fmt.Sprint(status, base), func(t *testing.T) {
				var paths []string
				u := listening(t, func(w http.ResponseWriter, r *http.Request) {
					paths = append(paths, r.RequestURI)
					if r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Culvert-Hello") == "" || r.Header.Get("X-Extra") != "1" {
						t.Errorf("%s is asked for with %v", r.RequestURI, r.Header)
					}
					if r.URL.Path == "/" {
						w.Header().Set("Location", strings.ReplaceAll(base, "HOST", r.Host)+"/some%2Fpath?q=1#f")
						w.WriteHeader(status)
						return
					}
					culvert(w, r)
				})
				d := &carrier.Dialer{URL: parseURL(t, u), Credential: token("secret"), Header: http.Header{"X-Extra": {"1"}}}
				if err := dialed(t, d); err != nil {
					t.Error(err)
				}
				if got := strings.Join(paths, " "); got != "/ /some%2Fpath?q=1" {
					t.Errorf("asked for %s", got)
				}
			})
		}
	}
}

// Nothing goes to another origin, and nothing goes round for ever.
func TestDialRedirectsEnd(t *testing.T) {
	tests := []struct {
		name     string
		location string // HOST is that of the request
		status   int
		requests int
		text     string
	}{
		{"another scheme", "https://HOST/x", 302, 1, `redirected to "https://`},
		{"another host", "http://login.example/x", 302, 1, `redirected to "http://login.example/x"`},
		{"another host without a scheme", "//login.example/x", 302, 1, `redirected to "//login.example/x"`},
		{"another port", "http://HOST0/x", 302, 1, "redirected to"},
		{"a user", "http://u@HOST/x", 302, 1, "redirected to"},
		{"no address", "", 302, 1, "answered 302"},
		{"nonsense", "http://[", 302, 1, `redirected to "http://["`},
		{"not a redirect", "/x", 300, 1, `redirected to "/x"`},
		{"for ever", "/x", 302, 6, `after 5 redirects: redirected to "/x"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			requests := 0
			u := listening(t, func(w http.ResponseWriter, r *http.Request) {
				requests++
				w.Header().Set("Location", strings.ReplaceAll(tt.location, "HOST", r.Host))
				w.WriteHeader(tt.status)
			})
			err := dialed(t, &carrier.Dialer{URL: parseURL(t, u), Credential: token("secret")})
			phaseOf(t, err, carrier.PhaseUpgrade)
			if !errors.Is(err, carrier.ErrNotCulvert) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			if requests != tt.requests {
				t.Errorf("%d requests, want %d", requests, tt.requests)
			}
		})
	}
}

// The origin is that of the request, wherever that is sent.
func TestDialHostAndAddress(t *testing.T) {
	u := listening(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "front.example" {
			t.Errorf("Host is %s", r.Host)
		}
		if r.URL.Path == "/" {
			http.Redirect(w, r, "http://front.example:80/x", http.StatusFound)
			return
		}
		culvert(w, r)
	})
	address := parseURL(t, u).Host
	for name, d := range map[string]*carrier.Dialer{
		"Host":           {URL: parseURL(t, u), Header: http.Header{"Host": {"front.example"}}},
		"Address":        {URL: parseURL(t, "ws://front.example"), Address: address},
		"with a secret":  {URL: parseURL(t, "ws://front.example"), Address: address, Credential: token("secret")},
		"Host of secret": {URL: parseURL(t, u), SecretHeader: secretHeader(http.Header{"Host": {"front.example"}})},
	} {
		if err := dialed(t, d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, d := range map[string]*carrier.Dialer{
		"malformed": {URL: parseURL(t, u), Address: "front.example"},
		"elsewhere": {URL: parseURL(t, u), Address: "192.0.2.1:80", Credential: token("secret")},
	} {
		if err := dialed(t, d); !errors.Is(err, map[string]error{
			"malformed": carrier.ErrInvalidDialer, "elsewhere": carrier.ErrPlaintextCredential,
		}[name]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func secretHeader(h http.Header) func() (http.Header, error) {
	return func() (http.Header, error) { return h, nil }
}

func TestDialSecretHeader(t *testing.T) {
	echoing := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", r.Header.Get("X-Pass"))
		w.WriteHeader(500)
		fmt.Fprintf(w, "%s %s %s", r.Header.Get("X-Token"), r.Header.Get("Proxy-Authorization")[6:], r.Header.Get("X-Short"))
	}
	asked := 0
	d := &carrier.Dialer{
		URL:        parseURL(t, listening(t, echoing)),
		Header:     http.Header{"X-Token": {"public"}},
		Credential: token("sesame"),
		SecretHeader: func() (http.Header, error) {
			asked++
			return http.Header{
				"x-token": {"second"}, "X-Pass": {fmt.Sprint("sesame open ", asked)}, "X-Short": {"50"},
				"Proxy-Authorization": {"Basic b3BlbgAA"},
			}, nil
		},
	}
	for i := range 2 {
		err := dialed(t, d)
		if refused, ok := errors.AsType[*carrier.RefusedError](err); !ok || refused.Status != 500 ||
			refused.Server != "[credential]" || refused.Body != "public [credential] 50" {
			t.Errorf("got %v", err)
		}
		if asked != i+1 {
			t.Errorf("asked %d times for dial %d", asked, i+1)
		}
	}

	for _, tt := range []struct {
		url    string
		header http.Header
		allow  bool
		want   error
	}{
		{"ws://a.example", http.Header{"X-Token": {"x"}}, false, carrier.ErrPlaintextCredential},
		{"ws://a.example", http.Header{"X-Token": {"x"}}, true, nil},
		{"ws://a.example", http.Header{}, false, nil},
		{"ws://localhost", http.Header{"X-Token": {"x"}}, false, nil},
		{"wss://a.example", http.Header{"X-Token": {"x"}}, false, nil},
		{"wss://a.example", http.Header{"Origin": {"x"}}, false, carrier.ErrInvalidDialer},
		{"wss://a.example", http.Header{"X-Token": {"x\n"}}, false, carrier.ErrInvalidDialer},
	} {
		d := carrier.Dialer{URL: parseURL(t, tt.url), SecretHeader: secretHeader(tt.header), AllowPlaintext: tt.allow}
		if err := d.Validate(); !errors.Is(err, tt.want) {
			t.Errorf("%s with %v: %v, want %v", tt.url, tt.header, err, tt.want)
		}
	}
	d.SecretHeader = func() (http.Header, error) { return nil, io.ErrNoProgress }
	err := dialed(t, d)
	phaseOf(t, err, carrier.PhaseSetup)
	if !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

func TestDialKeepsCookies(t *testing.T) {
	var got []string
	answers := []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) { // a refusal
			http.SetCookie(w, &http.Cookie{Name: "backend", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "elsewhere", Value: "x", Path: "/elsewhere"})
			http.SetCookie(w, &http.Cookie{Name: "other", Value: "x", Domain: "other.example"})
			http.SetCookie(w, &http.Cookie{Name: "user", Value: "x"})
			http.SetCookie(w, &http.Cookie{Name: "secure", Value: "x", Secure: true})
			w.WriteHeader(503)
		},
		func(w http.ResponseWriter, r *http.Request) { // a redirect
			http.SetCookie(w, &http.Cookie{Name: "backend", Value: "2"})
			http.Redirect(w, r, "/tunnel", http.StatusFound)
		},
		func(w http.ResponseWriter, r *http.Request) { // an upgrade
			http.SetCookie(w, &http.Cookie{Name: "backend", Value: "3"})
			culvert(w, r)
		},
		func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "backend", MaxAge: -1})
			w.WriteHeader(503)
		},
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
	}
	u := listening(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, strings.Join(r.Header.Values("Cookie"), "|"))
		answers[len(got)-1](w, r)
	})
	// Not the name of loopback, where a jar takes http for secure.
	d := &carrier.Dialer{
		URL: parseURL(t, u), Header: http.Header{"Host": {"front.example"}, "Cookie": {"user=me", "b=c; d=e"}},
		Cookies: new(carrier.Cookies),
	}
	for range 4 { // dials, one of two requests
		_ = dialed(t, d)
	}
	own := "user=me; b=c; d=e"
	want := []string{own, own + "; backend=1", own + "; backend=2", own + "; backend=3", own}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}

	got = nil
	d.Cookies = nil
	for range 2 {
		_ = dialed(t, d)
	}
	if fmt.Sprint(got) != fmt.Sprint([]string{own, own, own}) {
		t.Errorf("without a place for them, got %q", got)
	}
}

// What a server can make a client keep is bounded.
func TestCookiesAreBounded(t *testing.T) {
	var sent int
	set := func(w http.ResponseWriter, i int) {
		http.SetCookie(w, &http.Cookie{Name: fmt.Sprint("c", i), Value: "x"})
	}
	answer := func(w http.ResponseWriter) {
		for i := range 60 {
			set(w, i)
		}
	}
	u := listening(t, func(w http.ResponseWriter, r *http.Request) {
		sent = len(r.Cookies())
		answer(w)
		w.WriteHeader(503)
	})
	d := &carrier.Dialer{URL: parseURL(t, u), Cookies: new(carrier.Cookies)}
	_ = dialed(t, d)
	_ = dialed(t, d)
	if sent != 10 { // those that came when 50 were there
		t.Errorf("%d cookies are sent", sent)
	}
	for i := range 10 { // 40 KB in all
		answer = func(w http.ResponseWriter) {
			http.SetCookie(w, &http.Cookie{Name: fmt.Sprint("long", i), Value: strings.Repeat("x", 4000)})
		}
		_ = dialed(t, d)
	}
	answer = func(http.ResponseWriter) {}
	_ = dialed(t, d)
	if sent != 2 {
		t.Errorf("%d long cookies are sent", sent)
	}
	answer = func(w http.ResponseWriter) {
		http.SetCookie(w, &http.Cookie{Name: "huge", Value: strings.Repeat("x", 9000)})
	}
	_ = dialed(t, d)
	_ = dialed(t, d)
	if sent != 2 {
		t.Errorf("%d cookies are sent after one that is too long", sent)
	}
}

// What is malformed in an answer is quoted without the credential, which a server
// may say back.
func TestDialMalformedAnswerHidesCredential(t *testing.T) {
	const secret = `ses"ame-se\same`
	for _, answer := range []string{
		secret,
		"HTTP/1.1 200 OK\r\nBearer " + secret + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: " + secret + "\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: culvert.v1\r\n" +
			"Culvert-Hello: AA\r\nSec-WebSocket-Accept: " + secret + "\r\n\r\n",
	} {
		for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
			u := listening(t, func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(conn, answer)
				conn.Close()
			})
			err := dialed(t, &carrier.Dialer{URL: parseURL(t, u), Mode: mode, Credential: token(secret)})
			if err == nil || strings.Contains(err.Error(), "ses") || strings.Contains(err.Error(), "same") {
				t.Errorf("%s, answered %q: %v", mode, answer, err)
			}
		}
	}
}

// An inspection asks the host that a dial asks.
func TestInspectHost(t *testing.T) {
	asked := make(chan string, 1)
	u := listening(t, func(_ http.ResponseWriter, r *http.Request) { asked <- r.Host })
	d := carrier.Dialer{URL: parseURL(t, u), Header: http.Header{"host": {"front.example"}}}
	if _, err := d.Inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if host := <-asked; host != "front.example" {
		t.Errorf("it asks %q", host)
	}
}
