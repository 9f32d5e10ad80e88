package config

import (
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

const (
	proxyHint = "write it like http://USER:PASSWORD@HOST:3128, https://... or socks5://..., special characters as %40 for @"
	noProxy   = "none" // the value that ignores the environment
)

// checkProxy checks the text of an option that names a proxy.
func checkProxy(text string) error {
	if text == noProxy {
		return nil
	}
	_, err := parseProxy(text)
	return err
}

// parseProxy reads the URL of a forward proxy, or its HOST:PORT for http://. The scheme
// socks, which desktops put into ALL_PROXY, means SOCKS 5. An error never repeats any of
// the URL, since there may be a password in it.
func parseProxy(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":"),
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, wrong(proxyHint, "is not the URL of a proxy")
	case u.Scheme == "socks":
		u.Scheme = "socks5"
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme):
		return nil, wrong(proxyHint, "is of a scheme that is not http, https or socks5")
	}
	if asciiHost(u) != nil {
		return nil, wrong(proxyHint, "names a host that cannot be looked up")
	}
	if p := u.Port(); p != "" {
		if _, err := (part{text: p}).port(1); err != nil {
			return nil, wrong(proxyHint, "has a port that is not from 1 to 65535")
		}
	}
	return u, nil
}

// checkProxy settles which proxy leads to a server: the option's, or else what the
// environment says.
func (l *loader) checkProxy(c *Client, src Sources) {
	switch {
	case c.proxy.Reveal() == noProxy:
		return
	case !c.proxy.Empty():
		if u, err := parseProxy(c.proxy.Reveal()); err == nil {
			c.Proxy = func(*url.URL) (*url.URL, error) { return u, nil }
			if u.User != nil {
				l.checkSecret(&c.Settings, "proxy", "the proxy's password", "CULVERT_PROXY or the key proxy in a file")
			}
		}
	case src.LookupEnv != nil && !l.failed("proxy"):
		c.Proxy = environmentProxy(src)
	}
	if c.Proxy == nil {
		return
	}
	var found Problems
	for _, u := range c.Servers {
		server := *u
		server.Scheme = strings.NewReplacer("wss", "https", "ws", "http").Replace(server.Scheme)
		if _, err := c.Proxy(&server); err != nil {
			for _, problem := range err.(Problems) { //nolint:errorlint // that is what it is
				if !slices.Contains(found, problem) { // once for all servers
					found = append(found, problem)
				}
			}
		}
	}
	l.problems = append(l.problems, found...)
}

// environmentProxy returns the proxy that HTTPS_PROXY (for wss), HTTP_PROXY (for ws) or
// ALL_PROXY (for both) names, unless NO_PROXY excludes the server. The names in small
// letters come first. Loopback servers are never reached through a proxy of the
// environment. An error is of type Problems.
func environmentProxy(src Sources) func(*url.URL) (*url.URL, error) {
	first := func(names ...string) (name, text string) {
		for _, name := range names {
			if text := src.env(name); text != "" {
				return name, text
			}
		}
		return "", ""
	}
	forHTTP := []string{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"}
	if _, cgi := src.LookupEnv("REQUEST_METHOD"); cgi {
		forHTTP = slices.Delete(forHTTP, 1, 2) // it is the header Proxy of somebody's request
	}
	proxies := make(map[string]func() (*url.URL, error))
	for scheme, names := range map[string][]string{
		"http": forHTTP, "https": {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"},
	} {
		name, text := first(names...)
		if name == "" {
			continue
		}
		u, err := parseProxy(text)
		if err != nil {
			err = Problems{origin{key: name}.problem(explain(err))}
		}
		proxies[scheme] = func() (*url.URL, error) { return u, err }
	}
	// Whether one is used is httpproxy's to say, which one is not: it knows no
	// ALL_PROXY and repeats what is malformed.
	_, exceptions := first("no_proxy", "NO_PROXY")
	some := httpproxy.Config{HTTPProxy: "http://some", HTTPSProxy: "http://some", NoProxy: exceptions}
	used := some.ProxyFunc()
	return func(server *url.URL) (*url.URL, error) {
		proxy := proxies[server.Scheme]
		if u, err := used(server); u == nil || err != nil || proxy == nil {
			return nil, nil //nolint:nilerr // httpproxy fails only where there is a CGI
		}
		return proxy()
	}
}
