package carrier

import (
	"maps"
	"net/http"
	"net/url"
	"testing"
)

// The requests of a pipe are made at the same time, of one header.
func TestCookiesOfSharedHeader(t *testing.T) {
	site := &url.URL{Scheme: "http", Host: "a.example", Path: "/"}
	var c Cookies
	c.keep(site, &http.Response{Header: http.Header{"Set-Cookie": {"b=2"}}})
	own := make([]string, 2)
	own[0] = "a=1"
	shared := http.Header{"Cookie": own[:1]}
	header := maps.Clone(shared)
	c.add(header, site)
	if got := header["Cookie"]; len(got) != 1 || got[0] != "a=1; b=2" {
		t.Errorf("sent %q", got)
	}
	if own[1] != "" {
		t.Errorf("%q was written into what others use", own[1])
	}
}
