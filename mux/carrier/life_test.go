package carrier_test

import (
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

func near(got, want time.Duration) bool { return got >= want && got <= want+time.Second }

// A path that ends an idle Conn tells how long it was idle.
func TestQuietExactly(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		done := read(client)
		read(server)
		client.SetHeartbeat(12 * time.Second)
		after(12*time.Second + 7*time.Second) // the last bytes are those of the first heartbeat
		path.Cut()
		<-done
		after(time.Hour)
		l := client.Life()
		if !l.Exact || !near(l.Quiet, 7*time.Second) || !near(l.Age, 19*time.Second) || !near(l.Survived, 12*time.Second) {
			t.Errorf("%+v, want 7 s of quiet, exactly, at the age of 19 s, after 12 s survived", l)
		}
	})
}

// A path that forgets an idle Conn lets the next ping be the last.
func TestQuietUntilAPing(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		done := read(client)
		read(server)
		client.SetHeartbeat(12 * time.Second)
		after(5 * time.Second)
		path.Stall()
		<-done
		l := client.Life()
		if l.Exact || !near(l.Quiet, 12*time.Second) || l.Survived > time.Second {
			t.Errorf("%+v, want 12 s of quiet, at most, and none survived", l)
		}
	})
}
