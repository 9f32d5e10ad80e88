//go:build !linux && !darwin

package carrier

import "net"

func setUnsentLimit(net.Conn, int) {}
