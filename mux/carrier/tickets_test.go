package carrier

import (
	"crypto/tls"
	"testing"
)

// What a connection of a Dial gets after the Dial has failed is not kept.
func TestTicketsAfterFailure(t *testing.T) {
	kept := tls.NewLRUClientSessionCache(0)
	session := new(tls.ClientSessionState)
	one, other := &tickets{cache: kept}, &tickets{cache: kept}
	one.Put("a", session)
	if got, ok := other.Get("a"); !ok || got != session {
		t.Error("not kept for the next dial")
	}
	one.forget("a")
	one.Put("a", session)
	if got, _ := other.Get("a"); got != nil {
		t.Error("kept after a failure")
	}
	other.Put("a", session)
	if got, _ := kept.Get("a"); got != session {
		t.Error("not kept by the next dial")
	}
}
