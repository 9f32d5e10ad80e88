package tunnel

import (
	"errors"
	"strings"
	"testing"
)

// A wss:// address is advice for somebody who uses a ws:// one only.
func TestAdviceOnStrippedUpgrade(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := symptoms{worked: true, upgrade: errors.New("answered 400"), secure: secure}
		advice := strings.Join(s.advice(), "\n")
		if !strings.Contains(advice, "does not let WebSocket upgrades pass") || strings.Contains(advice, "wss://") == secure {
			t.Errorf("over TLS %t: %s", secure, advice)
		}
	}
}
