package carrier

import (
	"errors"
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
	l.muted = time.Now()
	if l.ended(false); l.Again() <= stripped {
		t.Errorf("after one more, the next one in %v", l.Again())
	}
	l.muted = time.Now()
	l.ended(true)
	if l.ended(false); l.Again() > 0 {
		t.Error("after one that worked, one that was mute is enough")
	}
}

// One HTTP pipe that cannot be dialled says nothing about WebSockets that were mute, and
// neither does a network that is down. After several a WebSocket gets a chance.
func TestLadderKeepsMute(t *testing.T) {
	var l Ladder
	mute := func() { l.ended(false); l.ended(false) }
	mute()
	for range 10 {
		l.dialledPipe(&DialError{PhaseConnect, "a", errors.New("no route")})
	}
	for range maxPipeFailures - 1 {
		if l.dialledPipe(&DialError{PhaseUpgrade, "a", errors.New("cut")}); l.Again() <= 0 {
			t.Fatal("it is forgotten that they are mute")
		}
	}
	l.dialledPipe(nil)
	for range maxPipeFailures {
		if l.Again() <= 0 {
			t.Fatal("it is forgotten that they are mute")
		}
		l.dialledPipe(&DialError{PhaseUpgrade, "a", errors.New("cut")})
	}
	if l.Again() > 0 {
		t.Error("no WebSocket is tried although no pipe passes")
	}

	// That upgrades are stripped is found out quickly.
	l.strips()
	if l.dialledPipe(&DialError{PhaseConnect, "a", errors.New("no route")}); l.Again() > 0 {
		t.Error("no WebSocket is tried after a failure")
	}
}

// On another network nothing is known.
func TestLadderForgets(t *testing.T) {
	var l Ladder
	l.strips()
	l.ended(false)
	l.ended(false)
	l.setPath(pathBuffers)
	l.Forget()
	if _, path := l.pipe(); l.Again() > 0 || path != pathUnknown {
		t.Errorf("the next WebSocket in %v, answers %v", l.Again(), path)
	}
	if l.ended(false); l.Again() > 0 {
		t.Error("one that was mute is enough")
	}
}

// An answer to the upgrade does not show that messages pass.
func TestLadderTrustsMessages(t *testing.T) {
	var l Ladder
	l.strips()
	l.until = time.Time{}
	l.strips()
	if l.Again() <= firstStripped {
		t.Error("the second time is not remembered for longer")
	}
	l.speaks()
	l.strips()
	if l.Again() > firstStripped {
		t.Error("after a WebSocket that worked, one time is remembered for long")
	}
}
