package mux

import (
	"io"
	"strings"
	"testing"
	"time"
)

func reset(id uint32, code Code, reason string) frame {
	return onControl(record{kind: recordReset, id: id, code: code, reason: reason})
}

// A refusal ends the stream when the opener has closed it, or in a while.
func TestRefuse(t *testing.T) {
	long := strings.Repeat("x", 300)
	refusal := frame{framePSH, 5, "\x05\xff" + long[:255]}
	for _, closes := range []bool{true, false} {
		cfg := Config{OpenTimeout: 50 * time.Millisecond}
		if closes {
			cfg.OpenTimeout = 0
		}
		p := newPeer(t, Server, cfg)
		st := p.serve(5)
		if err := st.Refuse(Denied, long); err != nil {
			t.Fatal(err)
		}
		p.want(refusal, frame{frameFIN, 5, ""})
		p.say(frame{framePSH, 5, "sent before the refusal came"})
		if closes {
			p.say(frame{frameFIN, 5, ""})
			<-st.Context().Done()
			p.settled()
		} else {
			p.want(reset(5, TimedOut, "refused stream not closed"))
		}
	}

	p := newPeer(t, Client, Config{})
	st := p.open(5)
	p.say(refusal)
	if err := st.Reply(t.Context()); CodeOf(err) != Denied {
		t.Errorf("Reply: %v, want denied", err)
	}
	p.want(frame{frameFIN, 5, ""})
	p.say(frame{frameFIN, 5, ""})
	<-st.Context().Done()
	if _, err := st.WriteTo(io.Discard); CodeOf(err) != Denied {
		t.Errorf("WriteTo: %v, want denied", err)
	}
}
