package front

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"sync"
)

// maxAnswer bounds in bytes what is read of an authority's answer for a reason.
const maxAnswer = 64 << 10

// reasons is the way to an authority, on which it says what was wrong with a
// challenge: autocert tells only that it has no other one to try.
type reasons struct {
	over http.RoundTripper

	mu   sync.Mutex // guards last
	last string     // "" for none
}

func (r *reasons) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.over.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	begin, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	rest := resp.Body
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(begin), failing{err}, rest), rest}
	var authorization struct { // RFC 8555, 7.1.4
		Challenges []struct {
			Type  string
			Error struct{ Detail string }
		}
	}
	if json.Unmarshal(begin, &authorization) == nil {
		for _, c := range authorization.Challenges {
			if c.Error.Detail != "" {
				r.say(c.Type + ": " + c.Error.Detail)
			}
		}
	}
	return resp, nil
}

func (r *reasons) say(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = reason
}

// take returns the last reason, once.
func (r *reasons) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	reason := r.last
	r.last = ""
	return reason
}

// failing is a Reader that has nothing but its error, if there is one.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
}
