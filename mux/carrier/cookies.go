package carrier

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Bounds of what a server can make a client keep, and send with each request.
const (
	maxCookies     = 50
	maxCookieBytes = 8 << 10 // names and values of all together
)

// Cookies are what one server has set (RFC 6265), as a load balancer does that
// leads a client to the same backend again. They are kept in memory and bounded: when
// a server sets more than 50, or more than 8 KiB, the older ones are forgotten. The
// zero value is empty. It is safe for concurrent use.
type Cookies struct {
	mu    sync.Mutex
	jar   *cookiejar.Jar // nil: empty
	sizes map[string]int // of what was put into jar, by what tells two cookies apart
	total int            // of sizes
}

// add puts into header what the server has set for a request to site. A cookie that
// header has already stays as it is.
func (c *Cookies) add(header http.Header, site *url.URL) {
	own := slices.Clip(header["Cookie"]) // which requests made at the same time may share
	given := (&http.Request{Header: http.Header{"Cookie": own}}).Cookies()
	for _, cookie := range c.of(site) {
		if !slices.ContainsFunc(given, func(g *http.Cookie) bool { return g.Name == cookie.Name }) {
			own = append(own, cookie.String())
		}
	}
	if len(own) > 0 {
		header["Cookie"] = []string{strings.Join(own, "; ")} // one field only (RFC 6265, 5.4)
	}
}

func (c *Cookies) of(site *url.URL) []*http.Cookie {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jar == nil {
		return nil
	}
	return c.jar.Cookies(site)
}

// keep takes what an answer from site sets.
func (c *Cookies) keep(site *url.URL, resp *http.Response) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cookie := range resp.Cookies() {
		size := len(cookie.Name) + len(cookie.Value)
		if size > maxCookieBytes {
			continue
		}
		key := cookie.Name + ";" + cookie.Domain + ";" + cookie.Path
		if cookie.Path == "" {
			key += site.Path // from which the default is made
		}
		c.total += size - c.sizes[key]
		if _, known := c.sizes[key]; c.jar == nil || !known && len(c.sizes) == maxCookies || c.total > maxCookieBytes {
			c.jar, _ = cookiejar.New(nil) // which never fails
			c.sizes, c.total = make(map[string]int), size
		}
		c.sizes[key] = size
		c.jar.SetCookies(site, []*http.Cookie{cookie})
	}
}
