package carrier_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"culvert/mux/carrier"
)

// Of whom a request is said to be is believed to trusted proxies only, and of them
// only what the last of them saw itself.
func TestTrustedProxies(t *testing.T) {
	const self = "the peer"
	for _, tt := range []struct {
		name, trusted string
		forwarded     []string
		want          string
	}{
		{"nobody is trusted", "", []string{"192.0.2.1"}, self},
		{"somebody else is trusted", "10.0.0.0/8", []string{"192.0.2.1"}, self},
		{"nothing said", "127.0.0.0/8", nil, self},
		{"one proxy", "127.0.0.0/8", []string{"192.0.2.1"}, "192.0.2.1:0"},
		{"one that says the port", "127.0.0.0/8", []string{"192.0.2.1:4711"}, "192.0.2.1:4711"},
		{"IPv6", "127.0.0.0/8", []string{"2001:db8::1"}, "[2001:db8::1]:0"},
		{"IPv6 in brackets", "127.0.0.0/8", []string{"[2001:db8::1]"}, "[2001:db8::1]:0"},
		{"IPv6 with a port", "127.0.0.0/8", []string{"[2001:db8::1]:4711"}, "[2001:db8::1]:4711"},
		{"IPv4 in IPv6", "127.0.0.0/8", []string{"::ffff:192.0.2.1"}, "192.0.2.1:0"},
		{"forged by the client", "127.0.0.0/8", []string{"198.51.100.1, 192.0.2.1"}, "192.0.2.1:0"},
		{"forged in a line of its own", "127.0.0.0/8", []string{"198.51.100.1", "192.0.2.1"}, "192.0.2.1:0"},
		{"a trusted address forged", "127.0.0.0/8", []string{"127.0.0.1, 192.0.2.1"}, "192.0.2.1:0"},
		{"two proxies", "127.0.0.0/8 10.0.0.0/8", []string{"198.51.100.1, 192.0.2.1, 10.1.2.3"}, "192.0.2.1:0"},
		{"two proxies in two lines", "127.0.0.0/8 10.0.0.0/8", []string{"198.51.100.1,192.0.2.1", "10.1.2.3"}, "192.0.2.1:0"},
		{"from within", "127.0.0.0/8 10.0.0.0/8", []string{"10.9.9.9, 10.1.2.3"}, "10.9.9.9:0"},
		{"nonsense", "127.0.0.0/8", []string{"unknown"}, self},
		{"nonsense before a proxy", "127.0.0.0/8 10.0.0.0/8", []string{"192.0.2.1, <script>, 10.1.2.3"}, "10.1.2.3:0"},
		{"empty", "127.0.0.0/8", []string{""}, self},
		{"a comma too many", "127.0.0.0/8", []string{"192.0.2.1,"}, self},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var trusted []netip.Prefix
			var a, b string
			switch n, _ := fmt.Sscan(tt.trusted, &a, &b); n {
			case 2:
				trusted = append(trusted, netip.MustParsePrefix(b))
				fallthrough
			case 1:
				trusted = append(trusted, netip.MustParsePrefix(a))
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, ln, carrier.ServerConfig{TrustedProxies: trusted, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, r.RemoteAddr+" "+r.Header.Get("X-Forwarded-Proto")+r.Header.Get("X-Forwarded-Host")+r.Header.Get("Forwarded"))
			})})
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+ln.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header["X-Forwarded-For"] = tt.forwarded
			r.Header.Set("X-Forwarded-Proto", "https")
			r.Header.Set("X-Forwarded-Host", "h")
			r.Header.Set("Forwarded", "f")
			if err := r.Write(conn); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), r)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			got := string(body)
			want := tt.want
			if want == self {
				want = conn.LocalAddr().String()
			}
			if a == "127.0.0.0/8" {
				want += " httpshf"
			} else {
				want += " "
			}
			if got != want {
				t.Errorf("%q is from %q, want %q", tt.forwarded, got, want)
			}
		})
	}
}

// Behind a trusted proxy many clients have one address, which is not bounded as that of
// one client is.
func TestTrustedProxiesAreManyClients(t *testing.T) {
	for _, tt := range []struct {
		trusted string
		open    int // connections of 8
	}{{"10.0.0.0/8", 2}, {"127.0.0.0/8", 8}} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		serve(t, ln, carrier.ServerConfig{
			Handler: http.NotFoundHandler(), MaxUnauthenticatedPerAddress: 2, TrustedProxies: []netip.Prefix{netip.MustParsePrefix(tt.trusted)},
		})
		open := 0
		for range 8 {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				continue
			}
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				open++
			}
		}
		if open != tt.open {
			t.Errorf("%s is trusted, and %d connections are served, want %d", tt.trusted, open, tt.open)
		}
	}
}

// The address that is found is that of the request, of the carrier, and of the carrier
// over a pipe.
func TestTrustedProxyOfCarriers(t *testing.T) {
	for _, mode := range []carrier.Mode{carrier.ModeWebSocket, carrier.ModeHTTP} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		remotes, conns := make(chan string, 1), make(chan *carrier.Conn, 1)
		stop := serve(t, ln, carrier.ServerConfig{
			TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")},
			Handler: &carrier.Handler{Admit: func(r carrier.Request) (carrier.Admission, error) {
				remotes <- r.Remote
				return carrier.Admission{Attach: func(c *carrier.Conn) { conns <- c }}, nil
			}},
		})
		d := carrier.Dialer{
			URL: &url.URL{Scheme: "ws", Host: ln.Addr().String()}, Mode: mode,
			Header: http.Header{"X-Forwarded-For": {"198.51.100.1, 192.0.2.1"}},
		}
		client, _, err := d.Dial(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		server := <-conns
		if remote := <-remotes; remote != "198.51.100.1:0" || server.RemoteAddr() != remote {
			t.Errorf("%s: the request is from %s, the carrier from %s", mode, remote, server.RemoteAddr())
		}
		abort(client, server)
		stop()
	}
}

// Nobody is believed who says inside of a pipe where he is.
func TestNoProxyInsideOfPipes(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	remotes := make(chan string, 1)
	serve(t, ln, carrier.ServerConfig{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")},
		Handler: &carrier.Handler{Path: "/tunnel", Admit: func(r carrier.Request) (carrier.Admission, error) {
			remotes <- r.Remote
			return carrier.Admission{}, &carrier.Refusal{Status: 503, Token: carrier.RefusalLimit}
		}},
	})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	inner := strings.Replace(innerUpgrade, "Host:", "X-Forwarded-For: 203.0.113.6\r\nHost:", 1)
	fmt.Fprintf(conn, "POST /tunnel HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\nCulvert-Pipe: %s\r\nCulvert-Offset: 0\r\nContent-Length: %d\r\n\r\n%s",
		id(1), len(inner), inner)
	if remote := <-remotes; remote != "192.0.2.9:0" {
		t.Errorf("it is from %s", remote)
	}
}
