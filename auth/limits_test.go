package auth

import (
	"strings"
	"testing"
)

func TestLimits(t *testing.T) {
	directory := func(l Limits) *Directory {
		d, err := NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "alice", Limits: l}}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	g := NewGuard(directory(Limits{Streams: 1}))
	for name, want := range map[string]int{"alice": 1, "alice/of the issuer": 1, "bob": 0, "": 0} {
		if got := g.Limits(name).Streams; got != want {
			t.Errorf("%q may have %d streams, want %d", name, got, want)
		}
	}
	told := 0
	g.OnUse(func() { told = g.Limits("alice").Streams })
	g.Use(directory(Limits{Streams: 2}))
	if told != 2 {
		t.Errorf("whoever waits for another directory sees the limit %d", told)
	}

	_, err := NewDirectory(DirectoryConfig{Identities: []Identity{{Name: "alice", Limits: Limits{Streams: -1, Memory: -2}}}})
	if err == nil || !strings.Contains(err.Error(), "alice: limit streams is negative") || !strings.Contains(err.Error(), "memory is negative") {
		t.Errorf("negative limits: %v", err)
	}
}
