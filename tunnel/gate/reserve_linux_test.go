package gate

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"culvert/auth"
	"culvert/mux/carrier/reserve/reservetest"
)

// However much is dialled and listened at for streams, files can be opened.
func TestGateKeepsDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const most = 256
	for name, open := range map[string]func(g *auth.Guard, host auth.Host) (interface{ Close() error }, error){
		"dial": func(g *auth.Guard, host auth.Host) (interface{ Close() error }, error) {
			grant, err := g.Dial("", auth.TCP, host, netip.MustParseAddrPort(ln.Addr().String()))
			if err != nil {
				t.Fatal(err)
			}
			return Dial(t.Context(), grant)
		},
		"listen": func(g *auth.Guard, host auth.Host) (interface{ Close() error }, error) {
			grant, err := g.Listen("", auth.TCP, host, netip.MustParseAddrPort("127.0.0.1:0"))
			if err != nil {
				t.Fatal(err)
			}
			return Listen(t.Context(), grant, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			reservetest.Limit(t, most)
			g := guard(t, "allow 127.0.0.1:*", "allow localhost:*")
			for opened := 0; ; opened++ {
				socket, err := open(g, host(t, "127.0.0.1"))
				if errors.Is(err, syscall.EMFILE) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				if opened > most {
					t.Fatal("the limit is not in force")
				}
			}
			reservetest.Kept(t)
		})
	}
}
