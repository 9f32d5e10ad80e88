package front

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func backendAt(t testing.TB, target string) backend {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	return newBackend(u)
}

func TestHide(t *testing.T) {
	const local, outside, six = "http://127.0.0.1:8000", "https://www.example.com", "http://[fd00::1]:8000"
	for _, tt := range []struct{ target, name, value, want string }{
		// URLs of the backend become paths.
		{local, "Location", "http://127.0.0.1:8000/docs/?a=b#c", "/docs/?a=b#c"},
		{local, "Location", "HTTP://127.0.0.1:8000", "/"},
		{local, "Location", "http://127.0.0.1:8000?a", "/?a"},
		{local, "Location", "http://127.0.0.1:8000#c", "/#c"},
		{local, "Location", "//127.0.0.1:8000/docs/", "/docs/"},
		{local, "Location", "https://127.0.0.1:8000/", "/"},
		{local, "Location", "http://localhost:8000/", "/"}, // the same server by another name
		{local, "Location", "http://[::1]:8000/", "/"},
		{local, "Location", "https://login.example/?next=http://127.0.0.1:8000/a", "https://login.example/?next=/a"},
		{"http://localhost:8000", "Location", "http://LOCALHOST.:8000/", "/"},
		{"http://web.internal", "Location", "http://web.internal:80/a", "/a"},
		{"http://web.internal:80", "Location", "http://web.internal/a", "/a"},
		{outside, "Location", "https://WWW.example.com:443/a", "/a"},
		{six, "Location", "http://[FD00::1]:8000/a", "/a"},
		{local, "Content-Location", "http://127.0.0.1:8000/a.en.html", "/a.en.html"},
		{local, "Refresh", "5; url=http://127.0.0.1:8000/a", "5; url=/a"},
		{local, "Refresh", `5; URL="http://127.0.0.1:8000/a"`, `5; URL="/a"`},
		{local, "Link", "<http://127.0.0.1:8000/a.css>; rel=preload, <https://cdn.example/b.css>; rel=preload, <//127.0.0.1:8000>; rel=up",
			"</a.css>; rel=preload, <https://cdn.example/b.css>; rel=preload, </>; rel=up"},

		// A path never becomes another host's name.
		{local, "Location", "http://127.0.0.1:8000//evil.example/", "/.//evil.example/"},
		{local, "Location", `http://127.0.0.1:8000/\evil.example/`, `/./\evil.example/`},
		{local, "Location", "http://127.0.0.1:8000/\t/evil.example/", "/./\t/evil.example/"},

		// Other servers keep their names.
		{local, "Location", "/docs/", "/docs/"},
		{local, "Location", "docs/", "docs/"},
		{local, "Location", "http://127.0.0.1:8001/", "http://127.0.0.1:8001/"},
		{local, "Location", "http://127.0.0.1/", "http://127.0.0.1/"},
		{local, "Location", "http://127.0.0.1:80001/", "http://127.0.0.1:80001/"},
		{local, "Location", "http://127.0.0.1:8000@evil.example/", "http://127.0.0.1:8000@evil.example/"},
		{local, "Location", "http://127.0.0.1.example:8000/", "http://127.0.0.1.example:8000/"},
		{local, "Location", "ftp://127.0.0.1:8000/", "ftp://127.0.0.1:8000/"},
		{local, "Location", "https://a.example/x//127.0.0.1:8000/", "https://a.example/x//127.0.0.1:8000/"},
		{outside, "Location", "http://www.example.com/", "http://www.example.com/"},
		{outside, "Location", "https://example.com/", "https://example.com/"},

		// Where no path is possible, the name by which visitors come takes the backend's place.
		{local, "Access-Control-Allow-Origin", "http://127.0.0.1:8000", "https://tunnel.example:8443"},
		{local, "Access-Control-Allow-Origin", "*", "*"},
		{local, "Access-Control-Allow-Origin", "https://other.example", "https://other.example"},
		{local, "Timing-Allow-Origin", "http://127.0.0.1:8000, https://other.example", "https://tunnel.example:8443, https://other.example"},
		{local, "Content-Security-Policy", "connect-src ws://127.0.0.1:8000 http://127.0.0.1:8000/api", "connect-src wss://tunnel.example:8443 https://tunnel.example:8443/api"},
		{local, "Report-To", `{"endpoints":[{"url":"http://127.0.0.1:8000/r"}]}`, `{"endpoints":[{"url":"https://tunnel.example:8443/r"}]}`},
		{local, "X-Canonical", "//127.0.0.1:8000/a", "//tunnel.example:8443/a"},
		{local, "Alt-Svc", `h2="127.0.0.1:8000"`, ""},
		{local, "Etag", `"//"`, `"//"`},

		// A cookie is for the name that the visitor asked for.
		{local, "Set-Cookie", "a=b; Domain=127.0.0.1; Path=/", "a=b; Path=/"},
		{local, "Set-Cookie", "a=http://127.0.0.1:8000/; Secure", "a=http://127.0.0.1:8000/; Secure"},
		{outside, "Set-Cookie", "a=b; Secure; domain = .WWW.example.com", "a=b; Secure"},
		{outside, "Set-Cookie", "a=b; Domain=example.com; HttpOnly", "a=b; HttpOnly"},
		{outside, "Set-Cookie", "a=b; Domain=other.example", "a=b; Domain=other.example"},
		{"http://www.tunnel.example", "Set-Cookie", "a=b; Domain=tunnel.example", "a=b; Domain=tunnel.example"}, // the visitor's, too
	} {
		header := http.Header{tt.name: {"as it is", tt.value}}
		backendAt(t, tt.target).hide(header, origin{"https", "tunnel.example:8443"})
		got := header.Values(tt.name)
		if tt.want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 2 || got[0] != "as it is" || got[1] != tt.want {
			t.Errorf("%s: %s: %q, want %q", tt.target, tt.name, got, tt.want)
		}
	}
}

// Without a name by which the visitor came, a header that would name the backend is left out.
func TestHideFromTheNameless(t *testing.T) {
	header := http.Header{
		"Access-Control-Allow-Origin": {"http://127.0.0.1:8000"}, "X-Other": {"http://other.example"}, "Location": {"http://127.0.0.1:8000/a"},
		"Set-Cookie": {"a=b; Domain=127.0.0.1"},
	}
	backendAt(t, "http://127.0.0.1:8000").hide(header, origin{"http", ""})
	if len(header) != 3 || header.Get("X-Other") != "http://other.example" || header.Get("Location") != "/a" || header.Get("Set-Cookie") != "a=b" {
		t.Error(header)
	}
}

// Whatever a backend says, its URLs are gone, and a redirect within the backend does not lead to another
// host.
func FuzzHide(f *testing.F) {
	for _, seed := range []string{
		"http://127.0.0.1:8000/a", "//127.0.0.1:8000", "http://127.0.0.1:8000//evil.example", "<http://127.0.0.1:8000>; rel=next",
		"http://http://127.0.0.1:8000", "http://127.0.0.1:8000http://127.0.0.1:8000", "5;url=http://[::1]:8000/\\x",
	} {
		f.Add(seed)
	}
	b := backendAt(f, "http://127.0.0.1:8000")
	outer := origin{"https", "tunnel.example"}
	f.Fuzz(func(t *testing.T, value string) {
		header := http.Header{"Location": {value}, "X-Any": {value}, "Set-Cookie": {value}}
		b.hide(header, outer)
		for name, values := range header {
			for _, said := range values {
				if name != "Set-Cookie" && strings.Contains(said, "http://127.0.0.1:8000/") {
					t.Errorf("%s: %q", name, said)
				}
			}
		}
		rest, ours := strings.CutPrefix(value, "http://127.0.0.1:8000")
		if location := header.Get("Location"); ours && (rest == "" || rest[0] == '/') {
			u, err := url.Parse(location)
			if err == nil && u.Host != "" || strings.HasPrefix(location, "/\\") {
				t.Errorf("%q leads to %q", value, location)
			}
		}
	})
}
