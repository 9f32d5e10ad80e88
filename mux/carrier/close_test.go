package carrier_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/carrier/carriertest"
)

// closeCodes are the codes of all close frames in what a server sent, which is nothing
// else but control frames.
func closeCodes(sent []byte) (codes []int) {
	for len(sent) >= 2 && len(sent) >= 2+int(sent[1]) {
		n := 2 + int(sent[1])
		if sent[0] == 0x88 && n >= 4 {
			codes = append(codes, int(binary.BigEndian.Uint16(sent[2:])))
		}
		sent = sent[n:]
	}
	return codes
}

// Whatever ends a carrier politely, and however much its peer goes on sending, the peer
// sees one close frame, and no reset. The carrier's owner is as impatient as a link.
func TestCloseCodeArrives(t *testing.T) {
	garbage := frame(0x82, 64<<10, make([]byte, 64<<10))
	for name, tt := range map[string]struct {
		send []byte
		end  func(c *carrier.Conn) // what the owner does when the first message has come
		want int
	}{
		"unknown opcode":  {frame(0x83, 0, nil), nil, 1002},
		"unmasked":        {[]byte{0x82, 1, 'x'}, nil, 1002},
		"text":            {frame(0x81, 2, []byte("hi")), nil, 1003},
		"too large":       {frame(0x82, 1<<30, nil), nil, 1009},
		"a byte too much": {frame(0x82, maxMessage+1, make([]byte, maxMessage+1)), nil, 1009},
		"goodbye":         {frame(0x88, 2, []byte{0x03, 0xe8}), nil, 1000},
		"dismissed":       {nil, func(c *carrier.Conn) { c.Dismiss(errors.New("over"), "credential ended") }, 1008},
		"closed":          {nil, func(c *carrier.Conn) { _ = c.Close("protocol violation") }, 1000},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,tls=%t", name, secure), func(t *testing.T) {
				t.Parallel()
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				dial := func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
				if secure {
					cert, pool := carriertest.Certificate(t)
					address := ln.Addr().String()
					ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
					dial = func() (net.Conn, error) {
						return tls.Dial("tcp", address, &tls.Config{RootCAs: pool})
					}
				}
				var owners sync.WaitGroup
				t.Cleanup(owners.Wait)
				serve(t, ln, carrier.ServerConfig{Handler: &carrier.Handler{
					Admit: func(carrier.Request) (carrier.Admission, error) {
						return carrier.Admission{Attach: func(c *carrier.Conn) {
							owners.Go(func() {
								buf := make([]byte, maxMessage)
								_, err := c.ReadMessage(buf)
								if err == nil && tt.end != nil {
									owners.Go(func() { tt.end(c) })
								}
								for err == nil {
									_, err = c.ReadMessage(buf)
								}
								c.Abort(err)
								_ = c.Close("")
							})
						}}, nil
					},
				}})
				for range 50 {
					conn, err := dial()
					if err != nil {
						t.Fatal(err)
					}
					r := upgradeRaw(t, conn)
					var sending sync.WaitGroup
					sending.Go(func() {
						start := slices.Concat(tt.send, garbage)
						if tt.end != nil {
							start = slices.Concat(frame(0x82, 1, []byte("x")), start)
						}
						_, err := conn.Write(start)
						behind := 256 << 10
						if name == "closed" { // the WebSocket library reads it, in the midst of a message
							behind = 2 << 20
						}
						for ; err == nil && behind > 0; behind -= len(garbage) {
							_, err = conn.Write(garbage)
						}
						if err == nil && name == "closed" { // the answer to the server's goodbye
							_, _ = conn.Write(frame(0x88, 2, []byte{0x03, 0xe8}))
						}
					})
					_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					answer, err := io.ReadAll(r)
					if codes := closeCodes(answer); len(codes) != 1 || codes[0] != tt.want || err != nil {
						t.Errorf("closed with %d, want %d: %v", codes, tt.want, err)
					}
					conn.Close()
					sending.Wait()
				}
			})
		}
	}
}
