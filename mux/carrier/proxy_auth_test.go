package carrier

import (
	"slices"
	"testing"
)

func TestSplitChallenges(t *testing.T) {
	tests := []struct {
		value string
		want  []string
	}{
		{"", nil},
		{"Basic", []string{"Basic"}},
		{`Basic realm="x"`, []string{`Basic realm="x"`}},
		{`Basic realm="a, NTLM", charset="UTF-8", NTLM,Negotiate  abc==`,
			[]string{`Basic realm="a, NTLM", charset="UTF-8"`, "NTLM", "Negotiate abc=="}},
		{`Digest realm="\", Basic", nonce = "n", qop="auth,auth-int", Basic realm=x`,
			[]string{`Digest realm="\", Basic", nonce = "n", qop="auth,auth-int"`, "Basic realm=x"}},
		{`realm="x", Basic`, []string{"Basic"}},
		{` , ,Basic, ,`, []string{"Basic"}},
		{`"Basic", NTLM`, []string{"NTLM"}},
	}
	for _, tt := range tests {
		if got := splitChallenges(tt.value); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.value, got, tt.want)
		}
	}
}

// Of several ways the one that is offered and safest is taken, in whichever order.
func TestProxyAuthPrefers(t *testing.T) {
	const weird = `Digest realm="x", nonce="n", algorithm=MD5-sess`
	tests := []struct {
		offered []string
		want    string
	}{
		{[]string{"Basic", "NTLM", "Negotiate", `DIGEST realm="x", nonce="n"`}, "Digest"},
		{[]string{"Basic", "Negotiate", "ntlm"}, "NTLM"},
		{[]string{"Basic", "negotiate"}, "Negotiate"},
		{[]string{weird, "basic"}, "Basic"},
		{[]string{weird, `Digest realm="x", nonce="n", algorithm=SHA-256`}, "Digest"},
		{[]string{weird, "Bearer"}, ""},
	}
	for _, tt := range tests {
		a := proxyAuth{proxyAccount: proxyAccount{"p:1", "u", "p"}, target: "h:1"}
		if answer := a.answer(tt.offered); a.scheme() != tt.want || (answer == "") != (tt.want == "") {
			t.Errorf("%q: answered %q with %q, want %q", tt.offered, a.scheme(), answer, tt.want)
		}
	}
}

func TestSecrets(t *testing.T) {
	s := secrets{"", "sesame", "open sesame"}
	for text, want := range map[string][2]string{ // whole, and as the beginning of more
		"":                 {"", ""},
		"nothing":          {"nothing", "nothing"},
		"say open sesame!": {"say [credential]!", "say [credential]!"},
		"sesame sesame":    {"[credential] [credential]", "[credential] [credential]"},
		"say open ses":     {"say open ses", "say "},
		"say ses":          {"say ses", "say "},
		"ses":              {"ses", ""},
	} {
		if got := [2]string{s.hide(text), s.hideCut(text)}; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
