package carrier

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
)

// What RFC 1928 and RFC 1929 put on the wire.
const (
	socksVersion     = 5
	socksNoAuth      = 0
	socksPassword    = 2
	socksConnect     = 1
	socksIPv4        = 1
	socksName        = 3
	socksIPv6        = 4
	socksAuthVersion = 1
	maxSOCKS         = 255 // bytes of a host, a user name, a password
)

var socksReplies = map[byte]string{
	1: "general failure", 2: "connection not allowed by ruleset", 3: "network unreachable", 4: "host unreachable",
	5: "connection refused", 6: "TTL expired", 7: "command not supported", 8: "address type not supported",
}

// socks has a SOCKS 5 proxy connect to target (RFC 1928). Names are resolved by
// the proxy. No byte after its reply is read.
//
// golang.org/x/net/proxy does the same, but its errors are texts: whether trying
// again can help would have to be read out of them.
func (p *forwardProxy) socks(conn net.Conn, target string) error {
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return err
	}
	methods := []byte{socksVersion, 1, socksNoAuth}
	if p.credential {
		methods = []byte{socksVersion, 2, socksNoAuth, socksPassword}
	}
	method, err := exchange(conn, methods, 2)
	if err != nil {
		return err
	}
	refused := &ProxyError{Proxy: p.addr, Credential: p.credential}
	switch {
	case method[0] != socksVersion:
		return fmt.Errorf("%w: it answers %q, which is not SOCKS 5", ErrNotProxy, method)
	case method[1] == socksPassword && p.credential:
		request := append([]byte{socksAuthVersion, byte(len(p.user))}, p.user...)
		request = append(append(request, byte(len(p.password))), p.password...)
		status, err := exchange(conn, request, 2)
		if err != nil {
			return err
		}
		if refused.Tried = "SOCKS"; status[1] != 0 {
			return refused
		}
	case method[1] != socksNoAuth:
		return refused
	}

	request := []byte{socksVersion, socksConnect, 0}
	switch ip, err := netip.ParseAddr(host); {
	case err != nil || ip.Zone() != "":
		request = append(append(request, socksName, byte(len(host))), host...)
	case ip.Is4():
		request = append(append(request, socksIPv4), ip.AsSlice()...)
	default:
		request = append(append(request, socksIPv6), ip.AsSlice()...)
	}
	reply, err := exchange(conn, binary.BigEndian.AppendUint16(request, uint16(port)), 2)
	if err != nil {
		return err
	}
	if reply[0] != socksVersion {
		return fmt.Errorf("%w: its reply is not one of SOCKS 5", ErrNotProxy)
	}
	if refused.Reply = reply[1]; reply[1] != 0 {
		return refused
	}
	bound := make([]byte, 3) // the address that it connects from: reserved, type, first byte
	if _, err := io.ReadFull(conn, bound); err != nil {
		return err
	}
	rest := int(bound[2])
	switch bound[1] {
	case socksIPv4:
		rest = 4 - 1 + 2
	case socksIPv6:
		rest = 16 - 1 + 2
	case socksName:
		rest += 2
	default:
		return fmt.Errorf("%w: its reply has an address of type %d", ErrNotProxy, bound[1])
	}
	_, err = io.ReadFull(conn, make([]byte, rest))
	return err
}

// exchange writes request and reads n bytes.
func exchange(conn net.Conn, request []byte, n int) ([]byte, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	answer := make([]byte, n)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	return answer, nil
}
