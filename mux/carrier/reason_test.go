package carrier

import (
	"strings"
	"testing"
)

func TestCloseReason(t *testing.T) {
	long := strings.Repeat("x", 130)
	for reason, want := range map[string]string{
		"":                              "",
		"going home":                    "going home",
		long[:123]:                      long[:123],
		long[:124]:                      long[:123],
		long[:122] + "é":                long[:122],
		long[:121] + "é":                long[:121] + "é",
		long[:120] + "\U0001F6AA" + "x": long[:120],
		"a\xffb":                        "a?b",
		"a\xff\xfeb" + long:             "a?b" + long[:120],
	} {
		if got := closeReason(reason); got != want {
			t.Errorf("%q: %q, want %q", reason, got, want)
		}
	}
}
