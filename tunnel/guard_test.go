package tunnel

import (
	"crypto/sha256"
	"testing"

	"culvert/auth"
)

// rules is a guard that knows alice, who has goodToken, and bob, both with one
// policy.
func rules(t testing.TB, dial, listen string) *auth.Guard {
	t.Helper()
	var policy auth.Policy
	for _, list := range []struct {
		text  string
		rules *[]auth.Rule
	}{{dial, &policy.Dial}, {listen, &policy.Listen}} {
		if list.text == "" {
			continue
		}
		r, err := auth.ParseRule(list.text)
		if err != nil {
			t.Fatal(err)
		}
		*list.rules = []auth.Rule{r}
	}
	d, err := auth.NewDirectory(auth.DirectoryConfig{
		Identities: []auth.Identity{
			{Name: "alice", Tokens: []auth.Token{{Sum: sha256.Sum256([]byte(goodToken))}}, Policy: policy},
			{Name: "bob", Policy: policy},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return auth.NewGuard(d)
}

// everything is a guard that allows what is not denied to all.
func everything(t testing.TB) *auth.Guard { return rules(t, "allow *:*", "allow localhost:*") }
