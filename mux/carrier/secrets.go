package carrier

import (
	"slices"
	"strconv"
	"strings"
)

// secrets are texts that were sent and that no error may show: a peer may say
// them back.
type secrets []string

const hidden = "[credential]"

// hide returns text with a placeholder for each secret.
func (s secrets) hide(text string) string {
	longest := slices.SortedFunc(slices.Values(s), func(a, b string) int { return len(b) - len(a) })
	for _, secret := range longest { // a shorter one may be a part of it
		if secret != "" {
			text = strings.ReplaceAll(text, secret, hidden)
		}
	}
	return text
}

// hideCut is hide for the beginning of a longer text, whose end may be the
// beginning of a secret.
func (s secrets) hideCut(text string) string {
	text = s.hide(text)
	cut := len(text)
	for _, secret := range s {
		for n := min(len(secret)-1, len(text)); n > 0; n-- {
			if strings.HasSuffix(text, secret[:n]) {
				cut = min(cut, len(text)-n)
				break
			}
		}
	}
	return text[:cut]
}

// hideError keeps secrets out of an error of net/http, which quotes of a malformed
// answer what is wrong with it.
func (s secrets) hideError(err error) error {
	text := err.Error()
	hid := s.hide(text)
	for _, secret := range s { // as it stands between quotes
		if quoted := strconv.Quote(secret); secret != "" {
			hid = strings.ReplaceAll(hid, quoted[1:len(quoted)-1], hidden)
		}
	}
	if hid == text {
		return err
	}
	return &hidingError{hid, err}
}

// hidingError is err in other words.
type hidingError struct {
	text string
	err  error
}

func (e *hidingError) Error() string { return e.text }
func (e *hidingError) Unwrap() error { return e.err }
