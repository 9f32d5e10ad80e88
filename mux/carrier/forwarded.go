package carrier

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// trustedProxies are networks of which what a reverse proxy says about its client is
// believed.
type trustedProxies []netip.Prefix

func (t trustedProxies) has(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(t, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// resolve makes RemoteAddr the client's, if a trusted proxy sent the request. Each
// proxy appends whom it got the request from, so the list is read from its end, and
// what a stranger wrote at its beginning is never reached.
func (t trustedProxies) resolve(r *http.Request) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !t.has(peer.Addr()) {
		for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
			r.Header.Del(name)
		}
		return
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		from, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			return
		}
		r.RemoteAddr = from.String()
		if !t.has(from.Addr()) {
			return
		}
	}
}

// parseHop reads an address, or an address and a port, as some proxies write it.
func parseHop(text string) (netip.AddrPort, bool) {
	if hop, err := netip.ParseAddrPort(text); err == nil {
		return netip.AddrPortFrom(hop.Addr().Unmap().WithZone(""), hop.Port()), true
	}
	text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	addr, err := netip.ParseAddr(text)
	return netip.AddrPortFrom(addr.Unmap().WithZone(""), 0), err == nil
}
