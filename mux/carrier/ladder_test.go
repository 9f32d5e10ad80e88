package carrier

import (
	"testing"
	"time"
)

// Where WebSockets come up and are mute, they are tried seldom, one at a time.
func TestLadderOfMuteWebSockets(t *testing.T) {
	var l Ladder
	if l.ended(false); l.Again() > 0 {
		t.Error("one that was mute is enough")
	}
	if l.ended(false); l.Again() <= stripped {
		t.Errorf("the next one in %v", l.Again())
	}
	l.until = time.Now()
	if l.ended(false); l.Again() <= stripped {
		t.Errorf("after one more, the next one in %v", l.Again())
	}
	l.until = time.Now()
	l.ended(true)
	if l.ended(false); l.Again() > 0 {
		t.Error("after one that worked, one that was mute is enough")
	}
}
