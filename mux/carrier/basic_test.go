package carrier_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"culvert/mux/carrier"
)

func TestBasicPassword(t *testing.T) {
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	long := strings.Repeat("x", 16<<10)
	tests := []struct {
		values         []string
		user, password string // user "": none
	}{
		{nil, "", ""},
		{[]string{"Basic"}, "", ""},
		{[]string{"Basic "}, "", ""},
		{[]string{carrier.Basic("alice", "open sesame")}, "alice", "open sesame"},
		{[]string{"basic   " + encode("alice:a:b ") + " "}, "alice", "a:b "},
		{[]string{"Basic " + encode("alice:")}, "alice", ""},
		{[]string{"Basic " + encode("älice:schlüssel")}, "älice", "schlüssel"},
		{[]string{"Basic " + encode(":sesame")}, "", ""},
		{[]string{"Basic " + encode("alice")}, "", ""},
		{[]string{"Basic " + encode("alice:ses\name")}, "", ""},
		{[]string{"Basic " + encode("al\x00ice:sesame")}, "", ""},
		{[]string{"Basic " + encode("alice:sesame") + "\r\n"}, "", ""},
		{[]string{"Basic " + strings.TrimRight(encode("alice:sesame!"), "=")}, "", ""},
		{[]string{"Basic " + strings.Replace(encode("alice:\xff\xff\xff"), "/", "_", 1)}, "", ""},
		{[]string{"Basic YWxpY2U6c2VzYW1lIR=="}, "", ""}, // unused bits that are not 0
		{[]string{"Basic " + encode("alice:"+long)}, "", ""},
		{[]string{"Bearer " + encode("alice:sesame")}, "", ""},
		{[]string{encode("alice:sesame")}, "", ""},
		{[]string{carrier.Basic("alice", "sesame"), carrier.Basic("alice", "sesame")}, "", ""},
	}
	for _, tt := range tests {
		r := &http.Request{Header: http.Header{"Authorization": tt.values}}
		user, password, ok := carrier.BasicPassword(r)
		if user != tt.user || password != tt.password || ok != (tt.user != "") {
			t.Errorf("%q: got %q, %q, %t, want %q, %q", tt.values, user, password, ok, tt.user, tt.password)
		}
		if token, ok := carrier.BearerToken(r); ok && tt.user != "" {
			t.Errorf("%q: it is the token %q as well", tt.values, token)
		}
	}
}

// A password arrives as it was given, and is in no error, however it is said back.
func TestDialWithPassword(t *testing.T) {
	const password = `open "sesame": ä`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, got, ok := carrier.BasicPassword(r); !ok || user != "alice" || got != password {
			t.Errorf("got %q, %q, %t", user, got, ok)
		}
		w.WriteHeader(500)
		_, _ = io.WriteString(w, r.Header.Get("Authorization")+" is "+password)
	}))
	defer srv.Close()
	d := carrier.Dialer{URL: parseURL(t, srv.URL), Credential: token(carrier.Basic("alice", password))}
	_, _, err := d.Dial(t.Context(), nil)
	if refused, ok := errors.AsType[*carrier.RefusedError](err); !ok || refused.Body != "Basic [credential] is [credential]" {
		t.Errorf("got %v", err)
	}

	d = carrier.Dialer{URL: parseURL(t, "ws://example.com"), Credential: token(carrier.Basic("alice", password))}
	if err := d.Validate(); !errors.Is(err, carrier.ErrPlaintextCredential) {
		t.Errorf("over plaintext: %v", err)
	}
	for _, credential := range []string{
		carrier.Basic("", "x"), carrier.Basic("a:b\n", "x"), carrier.Basic("a", "x\n"), carrier.Basic("a", strings.Repeat("x", 16<<10)),
		"Basic x", "Basic", "Basic  ", "basic " + carrier.Basic("a", "x")[6:], "two words",
	} {
		d := carrier.Dialer{URL: parseURL(t, srv.URL), Credential: token(credential)}
		if credential == "Basic" {
			continue // a token as any other
		}
		if err := d.Validate(); !errors.Is(err, carrier.ErrInvalidDialer) || strings.Contains(err.Error(), "eDp4") {
			t.Errorf("%q: %v", credential, err)
		}
	}
}

// An error of Authenticate that says what to answer is the answer.
func TestAuthenticateRefusal(t *testing.T) {
	srv := httptest.NewServer(&carrier.Handler{
		Authenticate: func(*http.Request) (carrier.Client, error) {
			return carrier.Client{}, &carrier.Refusal{Status: 429, Text: "later", Again: 6500e6}
		},
		Admit: func(carrier.Request) (carrier.Admission, error) {
			t.Error("admitted")
			return carrier.Admission{}, errors.New("no")
		},
	})
	defer srv.Close()
	d := carrier.Dialer{URL: parseURL(t, srv.URL)}
	_, _, err := d.Dial(t.Context(), nil)
	if refused, ok := errors.AsType[*carrier.RefusedError](err); !ok || refused.Status != 429 || refused.Token != "" || carrier.Permanent(err) {
		t.Errorf("got %v", err)
	}
}
