package carrier_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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
