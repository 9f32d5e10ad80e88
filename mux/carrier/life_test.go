package carrier_test

import (
	"errors"
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
		after(12*time.Second + 2*time.Second) // the first heartbeat is over
		write(t, client, "which is not answered")
		after(3300 * time.Millisecond)
		path.Cut()
		<-done
		after(time.Hour)
		l := client.Life()
		if !l.Exact || !near(l.Quiet, 3*time.Second) || !near(l.Age, 17*time.Second) || !near(l.Survived, 12*time.Second) {
			t.Errorf("%+v, want 3 s of quiet, exactly, at the age of 17 s, after 12 s survived", l)
		}
	})
}

// A path that forgets an idle Conn lets the next ping be the last.
func TestQuietUntilAPing(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		done := read(client)
		read(server)
		client.SetHeartbeat(12 * time.Second)
		after(time.Second)
		write(t, client, "which is not answered")
		after(3 * time.Second)
		path.Stall() // before the ping that comes after half the timeout
		<-done
		l := client.Life()
		if l.Exact || !near(l.Quiet, 5*time.Second) || l.Survived > time.Second {
			t.Errorf("%+v, want 5 s of quiet, at most, and none survived", l)
		}
	})
}

// A Conn that this end gives up tells of the quiet before what was not answered, and
// not of the time since.
func TestQuietUntilGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, path *carriertest.Path, client, server *carrier.Conn) {
		done := read(client)
		read(server)
		client.SetHeartbeat(time.Hour)
		after(2 * time.Second)
		write(t, client, "which is not answered")
		after(4 * time.Second)
		if l := client.Life(); l.Exact || !near(l.Quiet, 2*time.Second) || !near(l.Waiting, 4*time.Second) {
			t.Errorf("alive: %+v, want 2 s of quiet, at most", l)
		}
		client.Abort(errors.New("given up"))
		<-done
		if l := client.Life(); l.Exact || !near(l.Quiet, 2*time.Second) {
			t.Errorf("given up: %+v, want 2 s of quiet, at most", l)
		}
	})
}

func write(t *testing.T, c *carrier.Conn, text string) {
	t.Helper()
	sent, err := c.WriteMessages([]byte(text))
	if err == nil && !sent {
		err = c.Flush()
	}
	if err != nil {
		t.Fatalf("write: %v", err)
	}
}
