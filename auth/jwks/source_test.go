package jwks

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"culvert/auth"
	"culvert/test/bubble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	issuer  = "https://issuer.example"
	keysURL = issuer + "/keys"
)

// web is all the servers there are, in memory.
type web struct {
	mu      sync.Mutex
	answers map[string]http.HandlerFunc // by URL
	asked   []string
}

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked = append(w.asked, r.URL.String())
	answer := w.answers[r.URL.String()]
	w.mu.Unlock()
	if answer == nil {
		return nil, errors.New("no route to host")
	}
	recorder := httptest.NewRecorder()
	answer(recorder, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return recorder.Result(), nil
}

func (w *web) set(url string, answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[url] = answer
}

// count is how often somebody was asked since the last count.
func (w *web) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.asked)
	w.asked = nil
	return n
}

func newWeb() *web { return &web{answers: make(map[string]http.HandlerFunc)} }

// served answers with keys of these names.
func served(t *testing.T, header string, kids ...string) http.HandlerFunc {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, kid := range kids {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: newKey(t), KeyID: kid})
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set("Cache-Control", header)
		}
		_ = json.NewEncoder(w).Encode(set)
	}
}

func newKey(t *testing.T) ed25519.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func newSource(t *testing.T, w *web, url string) *Source {
	t.Helper()
	s, err := New(Config{URL: url, Issuer: issuer, Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// found reports whether a source has a key of this name.
func found(t *testing.T, s *Source, kid string) bool {
	t.Helper()
	keys, err := s.Lookup(t.Context(), kid)
	if (len(keys) > 0) != (err == nil) {
		t.Errorf("%d keys, error %v", len(keys), err)
	}
	return err == nil
}

func TestKeysAreKept(t *testing.T) {
	for _, tt := range []struct {
		header string
		fresh  time.Duration
	}{
		{"", defaultAge},
		{"public, max-age=3600, must-revalidate", time.Hour},
		{"max-age=1", minAge},
		{"Max-Age=99999999", maxAge},
		{"max-age=99999999999999999999", defaultAge},
		{"max-age=-5", defaultAge},
		{"no-cache, max-age=3600", minAge},
		{"no-store", minAge},
	} {
		t.Run(tt.header, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				w := newWeb()
				w.set(keysURL, served(t, tt.header, "one"))
				s := newSource(t, w, keysURL)
				defer s.Close()
				if s.Known() != nil || w.count() != 0 {
					t.Error("it asked before it had to")
				}
				for range 3 {
					if !found(t, s, "one") {
						t.Fatal("no key")
					}
				}
				time.Sleep(tt.fresh - time.Second)
				if found(t, s, "one"); w.count() != 1 {
					t.Error("the issuer was asked again too early")
				}
				time.Sleep(time.Second)
				if found(t, s, "one"); w.count() != 1 {
					t.Error("the issuer was not asked again in time")
				}
			})
		})
	}
}

// TestRotation checks that a new key is found at once, and that one taken away is gone
// when the time of the old keys is over.
func TestRotation(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWeb()
		w.set(keysURL, served(t, "", "one"))
		s := newSource(t, w, keysURL)
		defer s.Close()
		if !found(t, s, "one") {
			t.Fatal("no key")
		}
		time.Sleep(pause)
		w.set(keysURL, served(t, "", "two"))
		if !found(t, s, "one") {
			t.Error("the old key is gone too early")
		}
		if !found(t, s, "two") || found(t, s, "one") || len(s.Known()) != 1 {
			t.Error("the new keys are not there")
		}
		time.Sleep(defaultAge)
		w.set(keysURL, served(t, "", "three"))
		if found(t, s, "two") {
			t.Error("a key that the issuer has not any more was good after its time")
		}
	})
}

// TestFlood checks that strangers who invent names of keys cannot make a server ask more
// than once in a while, nor keep it from knowing the good ones.
func TestFlood(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWeb()
		w.set(keysURL, served(t, "max-age=86400", "one"))
		s := newSource(t, w, keysURL)
		defer s.Close()
		if !found(t, s, "one") {
			t.Fatal("no key")
		}
		w.count()
		begin := time.Now()
		for i := range 6000 {
			var group sync.WaitGroup
			for j := range 3 {
				group.Go(func() { found(t, s, fmt.Sprint("invented ", i, j)) })
			}
			group.Wait()
			before := time.Now()
			if !found(t, s, "one") || time.Since(before) > 0 {
				t.Fatal("the good key has to wait")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if asked, most := w.count(), int(time.Since(begin)/pause); asked > most || asked < most-1 {
			t.Errorf("the issuer was asked %d times in %v", asked, time.Since(begin))
		}
	})
}

// TestIssuerDown checks that keys go on to count, and nobody who has one waits, while
// the issuer does not answer.
func TestIssuerDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var warnings atomic.Int32
		w := newWeb()
		w.set(keysURL, served(t, "", "one"))
		s, err := New(Config{URL: keysURL, Transport: w, Warn: func(error) { warnings.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if !found(t, s, "one") {
			t.Fatal("no key")
		}
		w.set(keysURL, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		time.Sleep(defaultAge)
		before := time.Now()
		if !found(t, s, "one") || time.Since(before) != fetchTimeout {
			t.Errorf("the first who asks waited %v, not %v", time.Since(before), fetchTimeout)
		}
		for range 100 {
			time.Sleep(time.Second)
			before = time.Now()
			if !found(t, s, "one") || time.Since(before) > 0 {
				t.Fatalf("somebody with a known key waited %v", time.Since(before))
			}
		}
		synctest.Wait()
		if n := warnings.Load(); n < 2 {
			t.Errorf("%d warnings", n)
		}
		time.Sleep(time.Minute)
		w.set(keysURL, served(t, "", "two"))
		if !found(t, s, "two") || found(t, s, "one") {
			t.Error("the issuer is back and its keys are not known")
		}
	})
}

// TestCannotAskNow checks that a key that nobody has looked up is not called unknown.
func TestCannotAskNow(t *testing.T) {
	slow := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	down := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusServiceUnavailable) }
	for name, answer := range map[string]http.HandlerFunc{"no route": nil, "slow": slow, "503": down} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				w := newWeb()
				w.set(keysURL, answer)
				s := newSource(t, w, keysURL)
				defer s.Close()
				for range 3 { // the second is within the pause between two fetches
					if _, err := s.Lookup(t.Context(), "one"); !errors.Is(err, auth.ErrUnavailable) || errors.Is(err, auth.ErrUnknownKey) {
						t.Errorf("Lookup: %v, want %v", err, auth.ErrUnavailable)
					}
				}
			})
		})
	}
	t.Run("new key soon after a fetch", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			w := newWeb()
			w.set(keysURL, served(t, "", "one"))
			s := newSource(t, w, keysURL)
			defer s.Close()
			if _, err := s.Lookup(t.Context(), "two"); !errors.Is(err, auth.ErrUnknownKey) {
				t.Errorf("a key that the issuer does not have: %v, want %v", err, auth.ErrUnknownKey)
			}
			w.set(keysURL, served(t, "", "one", "two"))
			time.Sleep(pause / 2)
			if _, err := s.Lookup(t.Context(), "two"); !errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("a key that the issuer may have by now: %v, want %v", err, auth.ErrUnavailable)
			}
			time.Sleep(pause / 2)
			if !found(t, s, "two") {
				t.Error("the new key is not there after the pause between two fetches")
			}
		})
	})
}

// TestStaleKeys checks that the keys of an issuer that is down for long are not good for
// ever.
func TestStaleKeys(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWeb()
		w.set(keysURL, served(t, "", "one"))
		s := newSource(t, w, keysURL)
		defer s.Close()
		if !found(t, s, "one") {
			t.Fatal("no key")
		}
		w.set(keysURL, nil)
		time.Sleep(defaultAge + maxStale)
		if !found(t, s, "one") {
			t.Error("the key is not good any more")
		}
		time.Sleep(time.Second)
		if _, err := s.Lookup(t.Context(), "one"); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("Lookup: %v, want %v", err, auth.ErrUnavailable)
		}
	})
}

// TestWaitersLeave checks that a client that goes away does not wait for the issuer, and
// that Close ends what is under way.
func TestWaitersLeave(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWeb()
		w.set(keysURL, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		s := newSource(t, w, keysURL)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		if _, err := s.Lookup(ctx, "one"); !errors.Is(err, context.DeadlineExceeded) || time.Since(before) != time.Second {
			t.Errorf("%v after %v", err, time.Since(before))
		}
		s.Close()
		if time.Since(before) > time.Second {
			t.Error("Close waits for the issuer")
		}
		w.count()
		time.Sleep(time.Hour)
		if found(t, s, "one") || w.count() != 0 {
			t.Error("it asks after Close")
		}
	})
}

func TestDiscovery(t *testing.T) {
	configuration := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	discovered := `{"issuer":"` + issuer + `","jwks_uri":"https://keys.example/a"}`
	for _, tt := range []struct {
		name, url string
		answers   map[string]http.HandlerFunc
		want      string // "" for a key
	}{
		{"the issuer", issuer, map[string]http.HandlerFunc{
			issuer + wellKnown: configuration(discovered), "https://keys.example/a": served(t, "", "one"),
		}, ""},
		{"its configuration", issuer + wellKnown, map[string]http.HandlerFunc{
			issuer + wellKnown: configuration(discovered), "https://keys.example/a": served(t, "", "one"),
		}, ""},
		{"the configuration of another", issuer, map[string]http.HandlerFunc{
			issuer + wellKnown: configuration(`{"issuer":"https://evil.example","jwks_uri":"https://keys.example/a"}`),
		}, "and not of " + issuer},
		{"keys over plain HTTP", issuer, map[string]http.HandlerFunc{
			issuer + wellKnown: configuration(`{"issuer":"` + issuer + `","jwks_uri":"http://keys.example/a"}`),
		}, "is not an https URL"},
		{"keys at loopback", issuer, map[string]http.HandlerFunc{
			issuer + wellKnown: configuration(`{"issuer":"` + issuer + `","jwks_uri":"http://127.0.0.1/a"}`),
		}, "is not an https URL"},
		{"no address of keys", issuer, map[string]http.HandlerFunc{issuer + wellKnown: configuration(`{"issuer":"` + issuer + `"}`)}, "is not an https URL"},
		{"no configuration", issuer, map[string]http.HandlerFunc{issuer + wellKnown: configuration(`<html>`)}, "invalid character"},
		{"not found", keysURL, map[string]http.HandlerFunc{keysURL: http.NotFound}, "404"},
		{"a redirect", keysURL, map[string]http.HandlerFunc{keysURL: redirect(issuer + "/b"), issuer + "/b": served(t, "", "one")}, ""},
		{"a redirect to plain HTTP", keysURL, map[string]http.HandlerFunc{keysURL: redirect("http://127.0.0.1/b"), "http://127.0.0.1/b": served(t, "", "one")}, "is not an https URL"},
		{"at loopback", "http://localhost:9998/keys", map[string]http.HandlerFunc{
			"http://localhost:9998/keys": redirect("/b"), "http://localhost:9998/b": served(t, "", "one"),
		}, ""},
		{"another port of loopback", "http://localhost:9998/keys", map[string]http.HandlerFunc{
			"http://localhost:9998/keys": redirect("http://localhost:9999/b"), "http://localhost:9999/b": served(t, "", "one"),
		}, "without https it must be the same"},
		{"a redirect to itself", keysURL, map[string]http.HandlerFunc{keysURL: redirect(keysURL)}, "too many redirects"},
		{"huge", keysURL, map[string]http.HandlerFunc{keysURL: configuration(strings.Repeat(" ", maxBody+1))}, "more than"},
		{"no keys", keysURL, map[string]http.HandlerFunc{keysURL: configuration(`{"keys":[]}`)}, "no key for"},
		{"nobody there", keysURL, nil, "no route"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSource(t, &web{answers: tt.answers}, tt.url)
			defer s.Close()
			keys, err := s.Lookup(t.Context(), "one")
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d keys, error %v; want %q", len(keys), err, tt.want)
			}
		})
	}
}

func TestURLs(t *testing.T) {
	for url, good := range map[string]bool{
		"https://issuer.example/keys": true, "http://localhost:9998/keys": true, "http://127.0.0.2/": true, "http://[::1]:80/": true,
		"http://issuer.example/keys": false, "http://10.0.0.1/": false, "http://localhost.evil.example/": false,
		"ftp://127.0.0.1/": false, "https:///keys": false, "file:///etc/passwd": false, "https://%zz/": false,
	} {
		if _, err := New(Config{URL: url}); (err == nil) != good {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestOpen(t *testing.T) {
	der, err := x509.MarshalPKIXPublicKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys.pem")
	write := func(data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	keys, stop, err := Open(path, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if len(keys.Known()) != 1 {
		t.Errorf("%d keys", len(keys.Known()))
	}
	keys, stop, err = Open(keysURL, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, ok := keys.(*Source); !ok {
		t.Errorf("%T", keys)
	}
	write([]byte("{"))
	for _, where := range []string{path, path + ".missing", "http://issuer.example/"} {
		if _, _, err := Open(where, issuer, nil); err == nil || !strings.Contains(err.Error(), where) {
			t.Errorf("%s: %v", where, err)
		}
	}
	write(make([]byte, maxFile+1))
	if _, _, err := Open(path, issuer, nil); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a huge file: %v", err)
	}
}

var _ auth.KeySource = new(Source)

// What is wrong with a URL is said without what stands in it.
func TestMalformedURLIsNotRepeated(t *testing.T) {
	_, err := New(Config{URL: "https://user:sesame@issuer.example:port/keys"})
	if err == nil || strings.Contains(err.Error(), "sesame") {
		t.Error(err)
	}
}
