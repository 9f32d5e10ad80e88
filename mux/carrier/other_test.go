package carrier_test

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
	"culvert/mux/carrier/seal"
	"culvert/test/bubble"
)

var date = regexp.MustCompile(`\r\nDate: [^\r]+`)

// rawAnswer writes request and another one behind it on a connection, and returns all
// that comes back but the dates.
func rawAnswer(t *testing.T, network *carriertest.Network, request string) string {
	t.Helper()
	conn, err := network.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, request+"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	}()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return date.ReplaceAllString(string(answer), "")
}

// strangers are requests of clients without a good credential, for a path.
var strangers = map[string]string{
	"wrong token":               "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guess\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"no token":                  "GET %s HTTP/1.1\r\nHost: a\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"wrong token of our own":    "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nCulvert-Authorization: Bearer guess\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"password":                  "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"wrong token, bad hello":    "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guess\r\nCulvert-Hello: ====\r\n" + anUpgrade,
	"nothing, no hello":         "GET %s HTTP/1.1\r\nHost: a\r\n" + anUpgrade,
	"a browser":                 "GET %s HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"a browser with the token":  "GET %s HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nAuthorization: Bearer secret\r\nCulvert-Hello: aGk\r\n" + anUpgrade,
	"another protocol":          "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n" + strings.Replace(anUpgrade, "culvert.v1", "chat", 1),
	"pipe's POST, wrong token":  "POST %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guess\r\nCulvert-Pipe: AAAAAAAAAAAAAAAAAAAAAA\r\nCulvert-Offset: 0\r\nContent-Length: 4\r\n\r\nbody",
	"pipe's POST, no token":     "POST %s HTTP/1.1\r\nHost: a\r\nCulvert-Pipe: AAAAAAAAAAAAAAAAAAAAAA\r\nCulvert-Offset: 0\r\nContent-Length: 4\r\n\r\nbody",
	"pipe's GET, wrong token":   "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guess\r\nCulvert-Pipe: AAAAAAAAAAAAAAAAAAAAAA\r\nCulvert-Offset: 0\r\n\r\n",
	"pipe's probe, wrong token": "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guess\r\nCulvert-Pipe: probe\r\n\r\n",
	"pipe's request, malformed": "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nCulvert-Pipe: \r\nCulvert-Offset: 00\r\n\r\n",
	"an ordinary request":       "GET %s HTTP/1.1\r\nHost: a\r\n\r\n",
	"an old one":                "GET %s HTTP/1.0\r\n\r\n",
	"HEAD":                      "HEAD %s HTTP/1.1\r\nHost: a\r\n\r\n",
}

const anUpgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: culvert.v1\r\n\r\n"

// A stranger finds no difference, byte for byte, between the path of the tunnel and any
// other, whatever he asks and whoever answers.
func TestStealth(t *testing.T) {
	for name, other := range map[string]http.Handler{
		"nothing": nil,
		"a site":  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "<p>"+r.Method) }),
		"a login": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32 // for a credential
			network := carriertest.NewNetwork()
			serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
				Path: "/tunnel", Stealth: true, Other: other,
				Authenticate: func(r *http.Request) (carrier.Client, error) {
					asked.Add(1)
					return secretOnly(r)
				},
			}})
			ordinary := rawAnswer(t, network, "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
			for name, request := range strangers {
				asked.Store(0)
				there := rawAnswer(t, network, fmt.Sprintf(request, "/nothin"))
				atOther := asked.Swap(0)
				here := rawAnswer(t, network, fmt.Sprintf(request, "/tunnel"))
				if here != there {
					t.Errorf("%s: answered\n%q\nand at another path\n%q", name, here, there)
				}
				if asked.Load() != atOther { // it may take its time
					t.Errorf("%s: the credential is looked at %d times, and at another path %d", name, asked.Load(), atOther)
				}
				if strings.HasPrefix(request, "GET %s HTTP/1.1") && here != ordinary {
					t.Errorf("%s: answered\n%q\nand an ordinary request\n%q", name, here, ordinary)
				}
				if strings.Contains(strings.ToLower(here), "culvert") {
					t.Errorf("%s: answered %q", name, here)
				}
			}
		})
	}
}

// Who has a good credential is served, stealth or not, and told why not.
func TestStealthServesClients(t *testing.T) {
	network := carriertest.NewNetwork()
	serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
		Path: "/tunnel", Stealth: true, Authenticate: secretOnly,
		Admit: func(carrier.Request) (carrier.Admission, error) {
			return carrier.Admission{}, &carrier.Refusal{Status: 503, Token: carrier.RefusalStopping, Text: "no"}
		},
	}})
	d := carrier.Dialer{URL: &url.URL{Scheme: "ws", Host: "127.0.0.1", Path: "/tunnel"}, NetDial: network.Dial, Credential: token("secret")}
	if _, _, err := d.Dial(t.Context(), nil); err == nil || !strings.Contains(err.Error(), `refusal "stopping"`) {
		t.Error(err)
	}
	d.Credential = token("guess")
	const want = "answered 404 Not Found for the path \"/tunnel\": \"404 page not found\": not a culvert server, or the credential is not accepted (a stealthy server says no more)"
	if _, _, err := d.Dial(t.Context(), nil); err == nil || !strings.HasSuffix(err.Error(), want) || !carrier.Permanent(err) {
		t.Error(err)
	}
}

// A client's request goes to nobody else with its credential, not even when the client
// has the path wrong, or somebody on the way has changed the request. With Stealth, what
// has no good credential keeps all of its header, as what does not look like ours: a
// stranger would see the difference.
func TestOtherSeesNoCredential(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := [32]byte(key.PublicKey().Bytes())
	content := seal.Content{Authorization: "Bearer secret", Hello: []byte("hi")}
	_, sealed, err := seal.Hello(nil, server, content)
	if err != nil {
		t.Fatal(err)
	}
	voucher, err := seal.Voucher(nil, server, content)
	if err != nil {
		t.Fatal(err)
	}
	hello, credential := base64.RawURLEncoding.EncodeToString(sealed), base64.RawURLEncoding.EncodeToString(voucher)

	requests := maps.Clone(strangers)
	// What middleboxes make of an upgrade that they do not pass.
	const head, tail = "Authorization: Bearer secret\r\nCulvert-Hello: aGk\r\n", "Sec-WebSocket-Protocol: culvert.v1\r\n"
	requests["upgrade taken away"] = "GET %s HTTP/1.1\r\nHost: a\r\n" + head + "\r\n"
	requests["to HTTP/1.0"] = "GET %s HTTP/1.0\r\nHost: a\r\n" + head + anUpgrade
	requests["hello taken away"] = "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n" + tail + "\r\n"
	requests["with a body"] = "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n" + head + "\r\nbody"
	requests["sealed, upgrade taken away"] = "GET %s HTTP/1.1\r\nHost: a\r\nCulvert-Hello: " + hello + "\r\n\r\n"
	requests["sealed pipe, offset taken away"] = "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + credential + "\r\nCulvert-Pipe: AAAAAAAAAAAAAAAAAAAAAA\r\n\r\n"
	requests["a long header"] = "GET %s HTTP/1.1\r\nHost: a\r\nCulvert-A: " + strings.Repeat("x", 9000) + "\r\n\r\n"
	requests["a strange header"] = "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Digest x\r\nCulvert-Authorization: \r\nCulvert-A: 1\r\nCulvert-A: 2\r\n\r\n"
	requests["an ordinary one with a password"] = "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nOrigin: http://b\r\n\r\n"

	for _, stealth := range []bool{true, false} {
		t.Run(fmt.Sprintf("stealth %t", stealth), func(t *testing.T) {
			headers := make(chan http.Header, 1)
			network := carriertest.NewNetwork()
			serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{
				Path: "/tunnel", Stealth: stealth, Authenticate: secretOnly, Key: key,
				Other: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/last" {
						headers <- r.Header.Clone()
					}
				}),
			}})
			for name, request := range requests {
				ours := strings.Contains(request, "Culvert-") || strings.Contains(request, "culvert.v1")
				clients := ours && (strings.Contains(request, "Bearer secret") || strings.Contains(name, "sealed"))
				for _, path := range []string{"/tunnel", "/tunel"} {
					if !stealth && path == "/tunnel" {
						continue // most are refused
					}
					rawAnswer(t, network, fmt.Sprintf(request, path))
					header := <-headers
					sent, err := http.ReadRequest(bufio.NewReader(strings.NewReader(fmt.Sprintf(request, path))))
					if err != nil {
						t.Fatal(err)
					}
					want := sent.Header
					if clients || ours && !stealth {
						maps.DeleteFunc(want, func(name string, _ []string) bool {
							return name == "Authorization" || strings.HasPrefix(name, "Culvert-")
						})
					}
					if !maps.EqualFunc(header, want, slices.Equal) {
						t.Errorf("%s at %s: got %.200q, want %.200q", name, path, header, want)
					}
				}
			}
		})
	}
}

// The server's time-outs end what stands still, and nothing else of a site.
func TestOtherHasTime(t *testing.T) {
	read := func(r *http.Request) int64 {
		n, _ := io.Copy(io.Discard, r.Body)
		return n
	}
	slowly := func(conn net.Conn, n int) {
		for range n {
			after(20 * time.Second)
			_, _ = io.WriteString(conn, "x")
		}
	}
	const get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for name, tt := range map[string]struct {
		other http.HandlerFunc
		ask   func(conn net.Conn)
		want  string
		took  time.Duration
	}{
		"a late answer": {func(w http.ResponseWriter, r *http.Request) {
			after(50 * time.Second)
			fmt.Fprint(w, r.Context().Err())
		}, func(conn net.Conn) { _, _ = io.WriteString(conn, get) }, "<nil>", 50 * time.Second},
		"a late answer of nothing": {func(w http.ResponseWriter, _ *http.Request) {
			after(50 * time.Second)
			w.WriteHeader(http.StatusNoContent)
		}, func(conn net.Conn) { _, _ = io.WriteString(conn, get) }, "", 50 * time.Second},
		"a slow answer": {func(w http.ResponseWriter, r *http.Request) {
			for range 5 {
				after(20 * time.Second)
				fmt.Fprint(w, r.Context().Err())
				_ = http.NewResponseController(w).Flush()
			}
		}, func(conn net.Conn) { _, _ = io.WriteString(conn, get) }, strings.Repeat("<nil>", 5), 100 * time.Second},
		"a late answer that begins without a body": {func(w http.ResponseWriter, _ *http.Request) {
			after(50 * time.Second)
			if err := http.NewResponseController(w).Flush(); err == nil {
				fmt.Fprint(w, "begun")
			}
		}, func(conn net.Conn) { _, _ = io.WriteString(conn, get) }, "begun", 50 * time.Second},
		"a late hint": {func(w http.ResponseWriter, _ *http.Request) {
			after(50 * time.Second)
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "after it")
		}, func(conn net.Conn) { _, _ = io.WriteString(conn, get) }, "", 50 * time.Second},
		"a late answer to a request that is read beyond its end": {func(w http.ResponseWriter, r *http.Request) {
			n := read(r)
			n += read(r)
			after(50 * time.Second)
			fmt.Fprint(w, n, r.Context().Err())
		}, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nxxx")
		}, "3 <nil>", 50 * time.Second},
		"a slow request": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, read(r), r.Context().Err()) }, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
			slowly(conn, 3)
		}, "3 <nil>", 60 * time.Second},
		"a late answer to a request with a body": {func(w http.ResponseWriter, r *http.Request) {
			n := read(r)
			after(50 * time.Second)
			fmt.Fprint(w, n, r.Context().Err())
		}, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nxxx")
		}, "3 <nil>", 50 * time.Second},
		"a request that stands still": {func(_ http.ResponseWriter, r *http.Request) { read(r) }, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nx")
		}, "", 30 * time.Second},
		"a body that nobody reads": {func(http.ResponseWriter, *http.Request) {}, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nx")
		}, "", 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				network := carriertest.NewNetwork()
				stop := serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{Other: tt.other}})
				conn, err := network.Dial(t.Context(), "", "")
				if err != nil {
					t.Fatal(err)
				}
				started := time.Now()
				go tt.ask(conn)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil && (tt.want != "" || strings.HasPrefix(name, "a late")) {
					t.Fatal(err)
				}
				if err == nil {
					body, _ := io.ReadAll(resp.Body)
					if string(body) != tt.want {
						t.Errorf("answered %q, want %q", body, tt.want)
					}
				}
				if took := time.Since(started); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
				conn.Close()
				stop()
				synctest.Wait()
			})
		})
	}

	// An answer that nobody reads.
	bubble.Test(t, func(t *testing.T) {
		network := carriertest.NewNetwork()
		ended := make(chan time.Duration, 1)
		serve(t, network, carrier.ServerConfig{Handler: &carrier.Handler{Other: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			started := time.Now()
			var err error
			for err == nil {
				_, err = w.Write(make([]byte, 64<<10))
			}
			ended <- time.Since(started)
		})}})
		conn, err := network.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, get)
		if took := <-ended; took != 30*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A wrong credential is answered as quickly as any path.
func TestStealthTiming(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{Path: "/tunnel", Stealth: true, Authenticate: secretOnly}})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	paths := []string{"/tunnel", "/nothin"}
	var times [2][]time.Duration
	for i := range 2000 {
		started := time.Now()
		fmt.Fprintf(conn, strangers["wrong token"], paths[i%2])
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		times[i%2] = append(times[i%2], time.Since(started))
	}
	for i := range times {
		slices.Sort(times[i])
	}
	here, there := times[0][500], times[1][500]
	t.Logf("answered in %v, and at another path in %v (p50 of 1,000)", here, there)
	if here > 2*there || there > 2*here {
		t.Errorf("answered in %v, and at another path in %v", here, there)
	}
}
