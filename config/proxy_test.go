package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	const web, file = "http://web:1", "https://file:2"
	tests := []struct {
		name   string
		server string
		option string // "": not given
		env    map[string]string
		want   string
	}{
		{"nothing", "wss://h", "", nil, ""},
		{"option", "wss://h", "http://p:3128", nil, "http://p:3128"},
		{"option without a scheme", "wss://h", "p:3128", nil, "http://p:3128"},
		{"address without a scheme", "wss://h", "127.0.0.1:3128", nil, "http://127.0.0.1:3128"},
		{"credential without a scheme", "wss://h", "u:p%40@h:3128", nil, "http://u:p%40@h:3128"},
		{"SOCKS", "wss://h", "socks5://u:sesame@h", nil, "socks5://u:sesame@h"},
		{"SOCKS with remote resolution", "wss://h", "socks5h://h:9050/", nil, "socks5h://h:9050/"},
		{"option before environment", "wss://h", "http://p", map[string]string{"HTTPS_PROXY": web, "NO_PROXY": "*"}, "http://p"},
		{"option, to this machine", "ws://127.0.0.1", "http://p", nil, "http://p"},
		{"none", "wss://h", "none", map[string]string{"HTTPS_PROXY": web}, ""},

		{"wss", "wss://h", "", map[string]string{"HTTPS_PROXY": web, "HTTP_PROXY": file, "ALL_PROXY": file}, web},
		{"https", "https://h", "", map[string]string{"HTTPS_PROXY": web, "HTTP_PROXY": file}, web},
		{"ws", "ws://h", "", map[string]string{"HTTP_PROXY": web, "HTTPS_PROXY": file, "ALL_PROXY": file}, web},
		{"http", "http://h", "", map[string]string{"HTTP_PROXY": web, "HTTPS_PROXY": file}, web},
		{"of the other scheme", "wss://h", "", map[string]string{"HTTP_PROXY": web}, ""},
		{"all, wss", "wss://h", "", map[string]string{"HTTP_PROXY": file, "ALL_PROXY": web}, web},
		{"all, ws", "ws://h", "", map[string]string{"HTTPS_PROXY": file, "all_proxy": web, "ALL_PROXY": file}, web},
		{"small letters", "wss://h", "", map[string]string{"https_proxy": web, "HTTPS_PROXY": file}, web},
		{"small letters, ws", "ws://h", "", map[string]string{"http_proxy": web, "HTTP_PROXY": file}, web},
		{"host and port", "wss://h", "", map[string]string{"HTTPS_PROXY": "web:1"}, web},
		{"SOCKS for all", "wss://h", "", map[string]string{"ALL_PROXY": "socks5://s"}, "socks5://s"},
		{"SOCKS of a desktop", "wss://h", "", map[string]string{"ALL_PROXY": "socks://s:1080/"}, "socks5://s:1080/"},
		{"SOCKS by option", "wss://h", "SOCKS://u:sesame@h", nil, "socks5://u:sesame@h"},
		{"white space", "wss://h", "", map[string]string{"https_proxy": " \n", "HTTPS_PROXY": web + "\r\n"}, web},
		{"exceptions with white space", "wss://h", "", map[string]string{"HTTPS_PROXY": web, "NO_PROXY": "h\n"}, ""},
		{"empty", "wss://h", "", map[string]string{"https_proxy": "", "HTTPS_PROXY": web}, web},
		{"in CGI", "ws://h", "", map[string]string{"HTTP_PROXY": file, "REQUEST_METHOD": "GET"}, ""},
		{"small letters in CGI", "ws://h", "", map[string]string{"http_proxy": web, "REQUEST_METHOD": "GET"}, web},

		{"except", "wss://h.example", "", map[string]string{"HTTPS_PROXY": web, "NO_PROXY": "a, .example"}, ""},
		{"except a network", "wss://192.0.2.7", "", map[string]string{"HTTPS_PROXY": web, "no_proxy": "192.0.2.0/24"}, ""},
		{"except a port", "wss://h.example", "", map[string]string{"HTTPS_PROXY": web, "NO_PROXY": "h.example:444"}, web},
		{"except everything", "wss://h", "", map[string]string{"ALL_PROXY": web, "NO_PROXY": "*"}, ""},
		{"except what is malformed", "wss://h", "", map[string]string{"ALL_PROXY": "ftp://x", "NO_PROXY": "*"}, ""},
		{"this machine", "ws://127.0.0.1", "", map[string]string{"HTTP_PROXY": web}, ""},
		{"this machine by name", "ws://localhost", "", map[string]string{"ALL_PROXY": web}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			flags := map[string][]string{"server": {tt.server}, "local": {"1:h:1"}}
			file := ""
			if tt.option != "" {
				file = fmt.Sprintf("proxy: %q\n", tt.option)
			}
			c, warnings, err := LoadClient(sources(t, file, tt.env, flags))
			if err != nil || len(warnings) > 0 {
				t.Fatal(err, warnings)
			}
			var got *url.URL
			if c.Proxy != nil {
				server := *c.Servers[0]
				server.Scheme = map[string]string{"ws": "http", "wss": "https", "http": "http", "https": "https"}[server.Scheme]
				if got, err = c.Proxy(&server); err != nil {
					t.Fatal(err)
				}
			}
			text := ""
			if got != nil {
				text = got.String()
			}
			if text != tt.want {
				t.Errorf("proxy %q, want %q", text, tt.want)
			}
			if (c.SecretFile != "") != strings.Contains(file, "@") {
				t.Errorf("secret file %q", c.SecretFile)
			}
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
				if text := fmt.Sprintf(verb, *c); strings.Contains(text, "sesame") {
					t.Errorf("a secret is shown: %s", text)
				}
			}
		})
	}
}

func TestProxyProblems(t *testing.T) {
	const hint = "; write it like http://USER:PASSWORD@HOST:3128"
	for _, text := range []string{
		"ftp://u:sesame@h", "http://", "http://u:sesame@", "http://u:ses#ame@h", "http://u:sesame@h:port", "http://u:sesame@h:",
		"http://u:sesame@h/path", "http://u:sesame@h?q", "http://h:0", "http://h:65536", "u:sesame@h:99999", "http://u:sesame%zz@h", "://sesame",
	} {
		t.Run(text, func(t *testing.T) {
			for _, src := range []Sources{
				sources(t, good, nil, map[string][]string{"proxy": {text}}),
				sources(t, good, map[string]string{"CULVERT_PROXY": text}, nil),
				sources(t, good, map[string]string{"https_proxy": text}, nil),
				sources(t, good, map[string]string{"ALL_PROXY": text}, nil),
				sources(t, good+fmt.Sprintf("proxy: %q\n", text), map[string]string{"HTTPS_PROXY": "also:wrong:sesame"}, nil),
			} {
				where := "FILE:3: proxy: "
				for key := range src.Flags {
					if key == "proxy" {
						where = "--proxy: "
					}
				}
				for _, name := range []string{"CULVERT_PROXY", "https_proxy", "ALL_PROXY"} {
					if _, ok := src.LookupEnv(name); ok {
						where = name + ": "
					}
				}
				_, _, err := LoadClient(src)
				checkProblems(t, src, err, where)
				if !strings.Contains(fmt.Sprint(err), hint) {
					t.Errorf("no hint: %v", err)
				}
			}
		})
	}
	// What leads elsewhere may be what it likes.
	if _, _, err := LoadClient(sources(t, good, map[string]string{"HTTP_PROXY": "ftp://x", "ALL_PROXY": "ftp://x", "https_proxy": "p"}, nil)); err != nil {
		t.Error(err)
	}
}

func TestProxyPasswordOnTheCommandLine(t *testing.T) {
	for text, want := range map[string]bool{"http://u:sesame@h": true, "http://h": false, "none": false} {
		_, warnings, err := LoadClient(sources(t, good, nil, map[string][]string{"proxy": {text}}))
		warned := slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "proxy's password is on the command line") })
		if err != nil || warned != want {
			t.Errorf("%s: %q, %v", text, warnings, err)
		}
	}
}
