package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"culvert/auth"
	"culvert/auth/textfile"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/mux/carrier"
)

// sealing says for whom links are sealed, and with which key.
type sealing struct {
	keyFile   string          // "": no key of the client's own
	serverKey *auth.PublicKey // of every server; nil: as in the file known
	known     string
}

// newSealing looks at the files now, to tell what is wrong with them. They are read
// again at each dial.
func newSealing(cfg *config.Client) (s *sealing, warnings []string, problems config.Problems) {
	s = &sealing{keyFile: cfg.KeyFile, known: cfg.KnownServers}
	if s.keyFile == "" && cfg.Token.Empty() && cfg.TokenFile+cfg.TokenCommand+cfg.User+cfg.TLSCert == "" {
		if path, err := program.KeyFile("key"); err == nil {
			if _, err := os.Stat(path); err == nil {
				s.keyFile = path
			}
		}
	}
	if s.keyFile != "" {
		var err error
		if _, warnings, err = auth.ReadPrivateKey(s.keyFile); err != nil {
			problems = append(problems, config.Problem{Key: "--key-file", What: err.Error(), Hint: "make one with culvert-client keygen"})
		}
	}
	if cfg.ServerKey != "" {
		key, err := auth.ParsePublicKey(cfg.ServerKey)
		if err != nil {
			problems = append(problems, config.Problem{Key: "--server-key", What: err.Error()})
		}
		s.serverKey = &key
		return s, warnings, problems
	}
	if s.known == "" {
		var err error
		if s.known, err = program.KeyFile("known_servers"); err != nil {
			problems = append(problems, config.Problem{Key: "--known-servers", What: err.Error(), Hint: "say where it is, or give --server-key"})
			return s, warnings, problems
		}
	}
	warnings = append(warnings, auth.Writable(s.known)...)
	if _, err := readKnown(s.known); err != nil {
		problems = append(problems, config.Problem{Key: "--known-servers", What: err.Error(), Hint: "write HOST:PORT culvert-key BASE64, one a line"})
	}
	return s, warnings, problems
}

// errUnknown means a server whose key nobody has said.
var errUnknown = errors.New("the server's key is not known; connect once with culvert-client on a terminal, or give --server-key")

// seal is asked at each dial.
func (s *sealing) seal(server *url.URL) (carrier.Seal, error) {
	var seal carrier.Seal
	if s.keyFile != "" {
		key, _, err := auth.ReadPrivateKey(s.keyFile)
		if err != nil {
			return seal, err
		}
		seal.Key = key.ECDH()
	}
	if s.serverKey != nil {
		seal.Server, seal.Where = s.serverKey.Bytes, "--server-key"
		return seal, nil
	}
	known, err := readKnown(s.known)
	if err != nil {
		return seal, err
	}
	found, ok := known[hostPort(server)]
	if !ok {
		return seal, fmt.Errorf("%s: %w", hostPort(server), errUnknown)
	}
	seal.Server, seal.Where = found.key.Bytes, fmt.Sprintf("%s:%d", s.known, found.line)
	return seal, nil
}

// meet sees to it that the server's key is known: the first time, people say whether
// it is the right one.
func (s *sealing) meet(ctx context.Context, server *url.URL, ask func(context.Context, *url.URL) ([32]byte, error), stdin io.Reader, stderr io.Writer) error {
	if _, err := s.seal(server); !errors.Is(err, errUnknown) {
		return nil // an error is told by the dial
	}
	shown, err := ask(ctx, server)
	if errors.Is(err, carrier.ErrUnauthorized) || errors.Is(err, carrier.ErrNotCulvert) {
		return config.Problems{{Key: "--server-key", What: fmt.Sprintf("the key of %s is not known, and it does not tell", hostPort(server)),
			Hint: "ask who runs it for the line that culvert-server keygen printed, or whether it has a key at all"}}
	}
	if err != nil {
		return err
	}
	key := auth.PublicKey{Bytes: shown}
	if !isTerminal(stdin) {
		return config.Problems{{Key: "--server-key", What: fmt.Sprintf("the key of %s is not known; it shows %s", hostPort(server), key.Fingerprint()),
			Hint: fmt.Sprintf("if that is what its owner says, give --server-key '%s'", key)}}
	}
	fmt.Fprintf(stderr, "The server %s is not known. It shows the key\n  %s\nIs that what its owner says? Type yes to go on, and to know it from now on: ", hostPort(server), key.Fingerprint())
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return nil
	case said := <-answer:
		if said != "yes" {
			return config.Problems{{Key: "--server-key", What: fmt.Sprintf("the key of %s was not accepted", hostPort(server)), Hint: "nothing was sent to it"}}
		}
	}
	if err := addKnown(s.known, hostPort(server), key); err != nil {
		return config.Problems{{Key: "--known-servers", What: err.Error(), Hint: "give a file that can be written to, or --server-key"}}
	}
	return nil
}

// isTerminal reports whether somebody may be there to answer.
func isTerminal(in io.Reader) bool {
	f, ok := in.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return false
	}
	nobody, err := os.Stat(os.DevNull) // a device of characters, too
	return err != nil || !os.SameFile(info, nobody)
}

// hostPort is how a server is known.
func hostPort(server *url.URL) string {
	port := "80"
	if server.Scheme == "wss" || server.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(server.Hostname()), cmp.Or(server.Port(), port))
}

// knownServer is a line of the file of known servers.
type knownServer struct {
	key  auth.PublicKey
	line int
}

// maxKnownFile bounds the file of known servers in bytes.
const maxKnownFile = 1 << 20

// readKnown reads the file: HOST:PORT KEY, one a line, the first of a server counts;
// blank lines and lines that begin with # are ignored. No file is an empty one.
func readKnown(path string) (map[string]knownServer, error) {
	text, err := textfile.Read(path, maxKnownFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	known := make(map[string]knownServer)
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		server, rest, _ := strings.Cut(line, " ")
		key, err := auth.ParsePublicKey(rest)
		if err == nil {
			_, _, err = net.SplitHostPort(server)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		if _, ok := known[strings.ToLower(server)]; !ok {
			known[strings.ToLower(server)] = knownServer{key, number}
		}
	}
	return known, nil
}

// addKnown adds a line to the file, all or nothing.
func addKnown(path, server string, key auth.PublicKey) error {
	text, err := textfile.Read(path, maxKnownFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s%s %s\n", text, server, key)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
