package hostname

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// lookup maps as browsers do for a look-up (UTS 46), and leaves the check of ASCII
// characters to the caller: hosts may have an underscore.
var lookup = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false))

// ASCII returns the name in its ASCII form. Text in ASCII, which a name need not be, is
// returned as it is.
func ASCII(name string) (string, error) {
	if !strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 }) {
		return name, nil
	}
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("%.100q is not a host name: not UTF-8", name)
	}
	ascii, err := lookup.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("%.100q is not a host name: %w", name, err)
	}
	return ascii, nil
}
