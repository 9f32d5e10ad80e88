package carrier

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"culvert/mux/carrier/seal"
)

func FuzzHello(f *testing.F) {
	f.Add("", []byte{})
	f.Add("aGk", []byte("hi"))
	f.Add("aGl", []byte{0xff})
	f.Add("aGk=", []byte{0})
	f.Add("a\nGk", []byte{0, 1, 2})
	f.Add("+/+/", []byte("\xfb\xff"))
	f.Add("gQ", append([]byte{0x81}, make([]byte, 3756)...))
	limit := func(hello []byte) int {
		if seal.IsHello(hello) {
			return maxSealedHello
		}
		return maxHello
	}
	f.Fuzz(func(t *testing.T, value string, hello []byte) {
		h := http.Header{}
		h.Set(helloHeader, value)
		if got, err := decodeHello(h); err == nil {
			if len(got) > limit(got) || encodeHello(got) != value {
				t.Errorf("%q decodes to %d bytes that encode to %q", value, len(got), encodeHello(got))
			}
		}
		h.Set(helloHeader, encodeHello(hello))
		got, err := decodeHello(h)
		if (err == nil) != (len(hello) <= limit(hello)) || err == nil && !bytes.Equal(got, hello) {
			t.Errorf("%d bytes: got %x, %v", len(hello), got, err)
		}
		h.Add(helloHeader, value)
		if _, err := decodeHello(h); err == nil {
			t.Error("two hellos are read as one")
		}
	})
}

func FuzzBearerToken(f *testing.F) {
	for _, s := range []string{"", "Bearer ", "Bearer secret", "bearer  secret ", "Bearer a b", "Basic secret", "Bearersecret", "Bearer\tx", "Bearer \x00", "Bearer é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r := &http.Request{Header: http.Header{"Authorization": {value}}}
		token, ok := BearerToken(r)
		if !ok {
			if token != "" {
				t.Errorf("%q: refused with %q", value, token)
			}
			return
		}
		if token == "" || len(token) > maxBearer || strings.ContainsAny(token, " \t\r\n\x00") {
			t.Errorf("%q: token %q", value, token)
		}
		if want := "bearer"; !strings.EqualFold(strings.Trim(value[:len(want)+1], " "), want) ||
			strings.Trim(value[len(want):], " ") != token {
			t.Errorf("%q: token %q", value, token)
		}
		r.Header["Authorization"] = []string{"Bearer " + token}
		if again, ok := BearerToken(r); !ok || again != token {
			t.Errorf("%q: token %q is read as %q", value, token, again)
		}
		r.Header.Add("Authorization", value)
		if _, ok := BearerToken(r); ok {
			t.Error("two headers are read as one")
		}
	})
}

// FuzzUpgrade checks that what isUpgrade takes for an upgrade is one to the
// WebSocket library, which otherwise would answer for us.
func FuzzUpgrade(f *testing.F) {
	const good = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: culvert.v1\r\n\r\n"
	f.Add(good)
	for _, change := range []struct{ old, by string }{
		{"GET", "POST"},
		{"HTTP/1.1", "HTTP/1.0"},
		{"Connection: Upgrade", "Connection: a, upgrade\r\nConnection: b"},
		{"websocket", "h2c"},
		{"13", "013"},
		{"culvert.v1", "chat, Culvert.v1"},
		{"==", ""},
		{"Host: a", "Host: a\r\nSec-WebSocket-Key: x"},
		{"Host: a", "Host: a\r\nContent-Length: 5"},
		{"Host: a", "Host: a\r\nTransfer-Encoding: chunked"},
	} {
		f.Add(strings.Replace(good, change.old, change.by, 1))
	}
	f.Fuzz(func(t *testing.T, request string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
		if err != nil || !isUpgrade(r) || len(r.Header.Values("Origin")) > 0 {
			return
		}
		client, server := net.Pipe()
		defer client.Close()
		w := &hijackable{ResponseRecorder: httptest.NewRecorder(), conn: server}
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{Subprotocol}})
		if err != nil {
			t.Fatalf("%q: answered %d: %v", request, w.Code, err)
		}
		defer ws.CloseNow()
		if ws.Subprotocol() != Subprotocol || w.Header().Get("Sec-WebSocket-Extensions") != "" {
			t.Errorf("%q: answered %v", request, w.Header())
		}
		if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.Header.Get("Sec-WebSocket-Key"))); err != nil || len(key) != 16 {
			t.Errorf("%q: key %q", request, r.Header.Get("Sec-WebSocket-Key"))
		}
	})
}

// FuzzPipe checks that what is read of a pipe's request can be written in one way
// only, and that nothing is both that and an upgrade.
func FuzzPipe(f *testing.F) {
	const id = "Culvert-Pipe: AAAAAAAAAAAAAAAAAAAAAA\r\n"
	f.Add("POST / HTTP/1.1\r\nHost: a\r\n" + id + "Culvert-Offset: 0\r\n\r\n")
	f.Add("POST / HTTP/1.1\r\nHost: a\r\n" + id + "Culvert-Offset: 17\r\nCulvert-Close: 1\r\n\r\n")
	f.Add("GET / HTTP/1.0\r\n" + id + "Culvert-Offset: 9223372036854775807\r\nCulvert-Wait: 10000\r\n\r\n")
	f.Add("GET / HTTP/1.0\r\n" + id + id + "Culvert-Offset: 00\r\nCulvert-Wait: 1\r\nCulvert-Wait: 2\r\n\r\n")
	f.Add("GET /?r=1 HTTP/1.0\r\nCulvert-Pipe: probe\r\n\r\n")
	f.Fuzz(func(t *testing.T, request string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
		if err != nil {
			return
		}
		ask, ok := parsePipe(r)
		if !ok {
			return
		}
		want := http.Header{}
		switch {
		case ask.probe:
			want.Set(pipeHeader, pipeProbe)
		default:
			want.Set(pipeHeader, ask.id.String())
			want.Set(offsetHeader, strconv.FormatInt(ask.offset, 10))
			if ask.poll {
				want.Set(waitHeader, strconv.FormatInt(ask.wait.Milliseconds(), 10))
			}
			if ask.close {
				want.Set(closeHeader, "1")
			}
			for _, name := range []string{pipeHeader, offsetHeader, waitHeader, closeHeader} {
				if !slices.Equal(r.Header[name], want[name]) {
					t.Errorf("%s %q is read as %q", name, r.Header[name], want[name])
				}
			}
		}
		if r.Header.Get(pipeHeader) != want.Get(pipeHeader) || ask.offset < 0 || ask.wait < 0 || ask.wait > maxPoll {
			t.Errorf("%q is read as %+v", request, ask)
		}
		if ask.post != (r.Method == http.MethodPost) || ask.post && (ask.poll || ask.probe) || !ask.post && ask.close {
			t.Errorf("%s is read as %+v", r.Method, ask)
		}
	})
}

type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// FuzzChallenges checks that cutting challenges apart is done after one time, and
// that what a proxy offers is answered or not, but never fails.
func FuzzChallenges(f *testing.F) {
	for _, s := range []string{
		`Basic realm="x"`, `Basic realm="a, b", Digest realm="\"", nonce="n", qop="auth, auth-int",algorithm=SHA-256`,
		"NTLM", "Negotiate TlRMTVNTUAACAAAA==, NTLM , Basic", `realm="x"`, `A b = c, D`, `"`, ",,", "Digest nonce=a, stale=true", "Basic \t realm=x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		challenges := splitChallenges(value)
		for _, c := range challenges {
			scheme, _, _ := strings.Cut(c, " ")
			if scheme == "" || strings.Trim(scheme, tokenChars) != "" {
				t.Errorf("%q: the scheme of %q is no token", value, c)
			}
			if again := splitChallenges(c); len(again) != 1 || again[0] != c {
				t.Errorf("%q: %q is cut into %q", value, c, again)
			}
		}
		if schemes := schemesOf(challenges); len(schemes) > maxSchemes {
			t.Errorf("%q: %d schemes", value, len(schemes))
		}
		a := proxyAuth{proxyAccount: proxyAccount{"p:1", "u", "p"}, target: "h:1"}
		for range 4 {
			answer := a.answer(challenges)
			if answer == "" {
				return
			}
			if !strings.HasPrefix(answer, a.scheme()+" ") || strings.ContainsAny(answer, "\r\n") {
				t.Errorf("%q: answered %q", value, answer)
			}
		}
		t.Errorf("%q: answered for ever", value)
	})
}

// Whatever a proxy sends as its NTLM challenge, it gets an answer or none.
func FuzzNTLMChallenge(f *testing.F) {
	f.Add([]byte("NTLMSSP\x00\x02\x00\x00\x00"))
	// Squid's ntlm_fake_auth: flags that say Unicode and target information, and neither.
	f.Add([]byte("NTLMSSP\x00\x02\x00\x00\x00\x09\x00\x09\x00\x28\x00\x00\x00\x05\x82\x88\xa0\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x00\x3a\x00WORKGROUP"))
	f.Fuzz(func(t *testing.T, message []byte) {
		a := proxyAuth{proxyAccount: proxyAccount{"p:1", "u", "p"}, target: "h:1"}
		a.answer([]string{ntlmScheme, basicScheme})
		answer := a.answer([]string{ntlmScheme + " " + base64.StdEncoding.EncodeToString(message)})
		if scheme := a.scheme(); !strings.HasPrefix(answer, scheme+" ") || a.bound() != (scheme == ntlmScheme) {
			t.Errorf("%q: answered %q", message, answer)
		}
	})
}
