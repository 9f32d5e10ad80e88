package hostname

import (
	"testing"
)

func TestASCII(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"Example.COM", "Example.COM"},
		{"*", "*"},
		{"bücher.example", "xn--bcher-kva.example"},
		{"BÜCHER.example.", "xn--bcher-kva.example."},
		{"bu\u0308cher.example", "xn--bcher-kva.example"}, // decomposed
		{"bücher。example", "xn--bcher-kva.example"},       // an ideographic full stop
		{"a_b.bücher.example", "a_b.xn--bcher-kva.example"},
		{"faß.example", "xn--fa-hia.example"}, // and not fass
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"例え.テスト", "xn--r8jz45g.xn--zckzah"},
	} {
		if got, err := ASCII(tt.in); got != tt.want || err != nil {
			t.Errorf("%q became %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"\u200dü", "أa.example", "ü\x80"} {
		if got, err := ASCII(bad); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
