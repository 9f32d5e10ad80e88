package jwks

import (
	"fmt"
	"strings"

	"culvert/auth"
	"culvert/auth/textfile"
)

// maxFile bounds a file of keys, in bytes.
const maxFile = 1 << 20

// Open returns the keys of an issuer from where a user says that they are: a URL (as
// Config.URL; it is a Source then) or a file, as auth.ParseKeys reads it, which is read
// once. Whoever calls it calls stop when the keys are not asked for any more.
func Open(where, issuer string, warn func(error)) (keys auth.KeySource, stop func(), err error) {
	if strings.HasPrefix(where, "https://") || strings.HasPrefix(where, "http://") {
		s, err := New(Config{URL: where, Issuer: issuer, Warn: warn})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	}
	data, err := textfile.Read(where, maxFile)
	if err != nil {
		return nil, nil, err
	}
	set, err := auth.ParseKeys(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", where, err)
	}
	return set, func() {}, nil
}
