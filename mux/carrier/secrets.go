package carrier

import (
	"slices"
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
