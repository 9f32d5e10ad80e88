package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert/auth"
	"culvert/auth/textfile"
)

const (
	wellKnown = "/.well-known/openid-configuration"

	maxBody      = 256 << 10        // of an answer
	fetchTimeout = 5 * time.Second  // for all of a fetch
	pause        = 10 * time.Second // between two fetches
	maxRedirects = 3

	// Keys are fresh for as long as the issuer says (Cache-Control), within bounds.
	defaultAge = 15 * time.Minute
	minAge     = time.Minute
	maxAge     = 24 * time.Hour
	// maxStale is how long keys that are not fresh any more are good while the issuer
	// cannot be reached.
	maxStale = 24 * time.Hour
)

// Config is what a Source is made of.
type Config struct {
	// URL is of the issuer's keys (a JSON Web Key Set), or of its OpenID
	// configuration, which says where they are, or Issuer itself, below which its OpenID
	// configuration is. It is https, or http at loopback.
	URL string
	// Issuer is the name that the issuer's OpenID configuration must give.
	Issuer string
	// Transport is http.DefaultTransport if nil.
	Transport http.RoundTripper
	// Warn, if there is one, is told on another goroutine why keys could not be
	// fetched, at most once in ten seconds.
	Warn func(error)
}

// Source has the keys of an issuer, fetched when they are needed.
type Source struct {
	cfg    Config
	url    *url.URL
	client http.Client

	stop    context.Context
	cancel  context.CancelFunc
	fetches sync.WaitGroup

	mu       sync.Mutex // guards the rest
	keys     auth.KeySet
	fetched  time.Time     // when keys were
	fresh    time.Time     // until when keys need not be fetched
	next     time.Time     // when they may be
	failed   error         // of the last fetch
	fetching chan struct{} // closed at the end of the fetch under way, nil for none
}

// New checks cfg. It fetches nothing.
func New(cfg Config) (*Source, error) {
	u, err := url.Parse(cfg.URL)
	if wrong, ok := errors.AsType[*url.Error](err); ok { // which shows all of it, a password too
		return nil, fmt.Errorf("not a URL: %w", wrong.Err)
	} else if err != nil {
		return nil, err
	}
	if err := checkURL(u, true); err != nil {
		return nil, err
	}
	if cfg.URL == cfg.Issuer {
		u.Path = strings.TrimSuffix(u.Path, "/") + wellKnown
	}
	s := &Source{cfg: cfg, url: u}
	s.client = http.Client{Transport: cfg.Transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		return s.check(r.URL)
	}}
	s.stop, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// check refuses what leads from an https address to another kind, and from loopback to
// another port of it: tunnels may have their ends there.
func (s *Source) check(u *url.URL) error {
	if err := checkURL(u, s.url.Scheme == "http"); err != nil {
		return err
	}
	if u.Scheme == "http" && u.Host != s.url.Host {
		return fmt.Errorf("%q is at another address than %q (without https it must be the same)", u.Redacted(), s.url.Redacted())
	}
	return nil
}

func checkURL(u *url.URL, loopback bool) error {
	switch {
	case u.Host == "":
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is not an https URL (http is for loopback only)", u.Redacted())
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Close ends a fetch that is under way and returns when it has ended. From then on no
// keys are fetched.
func (s *Source) Close() {
	s.mu.Lock()
	s.cancel() // no fetch begins after this
	s.mu.Unlock()
	s.fetches.Wait()
}

// Known implements auth.KeySource.
func (s *Source) Known() auth.KeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// Lookup implements auth.KeySource. It waits for a fetch if the key is not known, or if
// its time is over and the issuer could be reached the last time. While the issuer
// cannot be reached, keys are good for maxStale beyond their time.
func (s *Source) Lookup(ctx context.Context, kid string) (auth.KeySet, error) {
	began := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.named(kid)
	if len(found) > 0 && time.Now().Before(s.fresh) {
		return found, nil
	}
	if done := s.fetch(); done != nil && (len(found) == 0 || s.failed == nil) {
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		found = s.named(kid)
	}
	switch {
	case len(found) > 0:
		return found, nil
	case s.failed != nil:
		return nil, fmt.Errorf("%w: %w", auth.ErrUnavailable, s.failed)
	case s.fetched.Before(began): // the issuer may have a new key since
		return nil, fmt.Errorf("%w: the issuer was asked %v ago, and is not asked more often than every %v",
			auth.ErrUnavailable, began.Sub(s.fetched).Round(time.Second), pause)
	default:
		return nil, auth.ErrUnknownKey
	}
}

// named returns the keys that a token may be signed with which names kid, unless they
// are too old. Called with mu held.
func (s *Source) named(kid string) auth.KeySet {
	if time.Since(s.fresh) > maxStale {
		return nil
	}
	return s.keys.Named(kid)
}

// fetch begins a fetch, unless one is under way, and returns what is closed at its end;
// nil if it is too early for another. Called with mu held.
func (s *Source) fetch() <-chan struct{} {
	if s.fetching != nil {
		return s.fetching
	}
	if time.Now().Before(s.next) || s.stop.Err() != nil {
		return nil
	}
	done := make(chan struct{})
	s.fetching = done
	s.fetches.Go(func() {
		ctx, cancel := context.WithTimeout(s.stop, fetchTimeout)
		defer cancel()
		keys, age, err := s.get(ctx)
		s.mu.Lock()
		now := time.Now()
		s.next, s.failed, s.fetching = now.Add(pause), err, nil
		if err == nil {
			s.keys, s.fetched, s.fresh = keys, now, now.Add(age)
		}
		s.mu.Unlock()
		close(done)
		if err != nil && s.stop.Err() == nil && s.cfg.Warn != nil {
			s.cfg.Warn(err)
		}
	})
	return done
}

// get fetches the keys, and how long they are fresh.
func (s *Source) get(ctx context.Context) (auth.KeySet, time.Duration, error) {
	from := s.url
	if strings.HasSuffix(from.Path, wellKnown) {
		var err error
		if from, err = s.discover(ctx); err != nil {
			return nil, 0, err
		}
	}
	body, header, err := s.read(ctx, from)
	if err != nil {
		return nil, 0, err
	}
	keys, err := auth.ParseKeys(body)
	if err != nil {
		return nil, 0, fmt.Errorf("keys of %s: %w", from.Redacted(), err)
	}
	return keys, freshness(header), nil
}

// discover asks the issuer's OpenID configuration (OpenID Connect Discovery 1.0) where
// the keys are.
func (s *Source) discover(ctx context.Context) (*url.URL, error) {
	body, _, err := s.read(ctx, s.url)
	if err != nil {
		return nil, err
	}
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &configuration); err != nil {
		return nil, fmt.Errorf("%s: %w", s.url.Redacted(), err)
	}
	if configuration.Issuer != s.cfg.Issuer {
		return nil, fmt.Errorf("%s is of the issuer %q, and not of %s", s.url.Redacted(), configuration.Issuer, s.cfg.Issuer)
	}
	from, err := url.Parse(configuration.Keys)
	if err == nil {
		err = s.check(from)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: jwks_uri: %w", s.url.Redacted(), err)
	}
	return from, nil
}

func (s *Source) read(ctx context.Context, from *url.URL) (body []byte, header http.Header, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: %s", from.Redacted(), response.Status)
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from.Redacted(), err)
	}
	if body, err = textfile.Text(body); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from.Redacted(), err)
	}
	return body, response.Header, nil
}

// freshness is how long an answer is fresh (RFC 9111, 5.2.2).
func freshness(header http.Header) time.Duration {
	age := defaultAge
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
		switch name {
		case "no-store", "no-cache":
			return minAge
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				age = time.Duration(seconds) * time.Second
			}
		}
	}
	return min(max(age, minAge), maxAge)
}
