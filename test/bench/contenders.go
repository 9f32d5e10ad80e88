//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"culvert/auth"
	"culvert/test/agent"
)

// contender is a way to carry TCP. start starts its agents and says where it listens; what leaves it
// goes to e.target, and what the agents say to each other goes through e.between.
type contender struct {
	name    string
	culvert bool
	start   func(e *env) (entrance string, err error)
}

// usual returns culvert as it is in this checkout, the relays, and the other programs that are installed.
func usual(dir string) ([]contender, error) {
	p, err := agent.Build(dir, false)
	if err != nil {
		return nil, err
	}
	all := []contender{culvert("culvert", p), {name: "relays", start: relays}}
	for _, c := range []struct {
		contender
		programs []string
	}{
		{contender{name: "haproxy", start: haproxy}, []string{"haproxy"}},
		{contender{name: "chisel", start: chisel}, []string{"chisel"}},
		{contender{name: "frp", start: frp}, []string{"frps", "frpc"}},
	} {
		missing := ""
		for _, program := range c.programs {
			if _, err := exec.LookPath(program); err != nil {
				missing = program
			}
		}
		if missing != "" {
			fmt.Fprintf(os.Stderr, "%s is left out: %s is not on the PATH\n", c.name, missing)
			continue
		}
		all = append(all, c.contender)
	}
	return all, nil
}

// builds returns a contender for each folder of list, whose folders have commas between them. Each folder
// must hold both programs.
func builds(list string) ([]contender, error) {
	var all []contender
	for folder := range strings.SplitSeq(list, ",") {
		if slices.ContainsFunc(all, func(c contender) bool { return c.name == folder }) {
			return nil, fmt.Errorf("-builds: %q is given twice; to measure the noise, give a copy of the folder", folder)
		}
		at, err := filepath.Abs(folder) // of programs without a slash the PATH would be searched
		if err != nil {
			return nil, fmt.Errorf("-builds: %w", err)
		}
		p := agent.Programs{Client: filepath.Join(at, "culvert-client"), Server: filepath.Join(at, "culvert-server")}
		for _, program := range []string{p.Client, p.Server} {
			if _, err := exec.LookPath(program); err != nil {
				return nil, fmt.Errorf("-builds: %w; give folders that hold culvert-client and culvert-server", err)
			}
		}
		all = append(all, culvert(folder, p))
	}
	return all, nil
}

func culvert(name string, p agent.Programs) contender {
	return contender{name: name, culvert: true, start: func(e *env) (string, error) {
		token := filepath.Join(e.agents.dir, "token")
		if err := os.WriteFile(token, []byte("bench-token-that-is-long-enough-0123456789\n"), 0o600); err != nil {
			return "", err
		}
		server, entrance, err := e.ports()
		if err != nil {
			return "", err
		}
		scheme, serverArgs, clientArgs := "ws", []string{"--listen", server, "--token-file", token}, []string(nil)
		if e.load.tls {
			scheme = "wss"
			cert, key, err := certificate(e.agents.dir)
			if err != nil {
				return "", err
			}
			serverArgs = append(serverArgs, "--tls-cert", cert, "--tls-key", key)
			clientArgs = append(clientArgs, "--tls-ca", cert)
		}
		if e.load.seal {
			key, path := auth.NewPrivateKey(""), filepath.Join(e.agents.dir, "seal.key")
			_ = os.Remove(path) // the last load's
			if err := key.Save(path); err != nil {
				return "", err
			}
			serverArgs = append(serverArgs, "--key-file", path)
			clientArgs = append(clientArgs, "--server-key", key.Public().String())
		}
		if err := e.agents.start(p.Server, serverArgs...); err != nil {
			return "", err
		}
		if err := e.await(server); err != nil {
			return "", err
		}
		front, err := e.between(server)
		if err != nil {
			return "", err
		}
		return entrance, e.agents.start(p.Client, append(clientArgs, "--server", scheme+"://"+front, "--token-file", token,
			"-L", entrance+":"+e.target.addr())...)
	}}
}

// relays are two processes of this program; what passes them is not copied out of the kernel.
func relays(e *env) (string, error) {
	server, entrance, err := e.ports()
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if err := e.agents.start(self, "relay", server, e.target.addr()); err != nil {
		return "", err
	}
	front, err := e.between(server)
	if err != nil {
		return "", err
	}
	return entrance, e.agents.start(self, "relay", entrance, front)
}

// isRelay says whether this process is one of them.
func isRelay() bool { return len(os.Args) == 4 && os.Args[1] == "relay" }

// relay is the whole of such a process. io.Copy between two TCP connections splices.
func relay(listen, to string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				return
			}
			go pass(far, near)
			pass(near, far)
		}()
	}
}

func pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}

func haproxy(e *env) (string, error) {
	server, entrance, err := e.ports()
	if err != nil {
		return "", err
	}
	front, err := e.between(server)
	if err != nil {
		return "", err
	}
	for _, hop := range [][2]string{{server, e.target.addr()}, {entrance, front}} {
		_, port, _ := net.SplitHostPort(hop[0])
		config := filepath.Join(e.agents.dir, "haproxy-"+port+".cfg")
		text := fmt.Sprintf("defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n maxconn 40000\n"+
			"listen hop\n bind %s\n server next %s\n", hop[0], hop[1])
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return "", err
		}
		if err := e.agents.start("haproxy", "-db", "-f", config); err != nil {
			return "", err
		}
	}
	return entrance, nil
}

func chisel(e *env) (string, error) {
	server, entrance, err := e.ports()
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(server)
	if err := e.agents.start("chisel", "server", "--host", host, "--port", port); err != nil {
		return "", err
	}
	if err := e.await(server); err != nil {
		return "", err
	}
	front, err := e.between(server)
	if err != nil {
		return "", err
	}
	return entrance, e.agents.start("chisel", "client", "http://"+front, entrance+":"+e.target.addr())
}

// frp listens at its server and dials from its client, with its default transport: TCP under yamux.
func frp(e *env) (string, error) {
	server, entrance, err := e.ports()
	if err != nil {
		return "", err
	}
	_, serverPort, _ := net.SplitHostPort(server)
	_, entrancePort, _ := net.SplitHostPort(entrance)
	targetHost, targetPort, _ := net.SplitHostPort(e.target.addr())
	front, err := e.between(server)
	if err != nil {
		return "", err
	}
	frontHost, frontPort, _ := net.SplitHostPort(front)
	frps, frpc := filepath.Join(e.agents.dir, "frps.toml"), filepath.Join(e.agents.dir, "frpc.toml")
	if err := os.WriteFile(frps, fmt.Appendf(nil, "bindAddr = \"127.0.0.1\"\nbindPort = %s\nproxyBindAddr = \"127.0.0.1\"\n", serverPort), 0o600); err != nil {
		return "", err
	}
	text := fmt.Appendf(nil, "serverAddr = %q\nserverPort = %s\n[[proxies]]\nname = \"bench\"\ntype = \"tcp\"\nlocalIP = %q\nlocalPort = %s\nremotePort = %s\n",
		frontHost, frontPort, targetHost, targetPort, entrancePort)
	if err := os.WriteFile(frpc, text, 0o600); err != nil {
		return "", err
	}
	if err := e.agents.start("frps", "-c", frps); err != nil {
		return "", err
	}
	if err := e.await(server); err != nil {
		return "", err
	}
	return entrance, e.agents.start("frpc", "-c", frpc)
}
