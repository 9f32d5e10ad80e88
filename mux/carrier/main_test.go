package carrier_test

import (
	"testing"

	"go.uber.org/goleak"

	"culvert/mux/carrier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// send writes v and waits until it was sent.
func send(c *carrier.Conn, v ...[]byte) error {
	sent, err := c.WriteMessages(v...)
	if err == nil && !sent {
		err = c.Flush()
	}
	return err
}
