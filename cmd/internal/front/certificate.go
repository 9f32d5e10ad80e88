package front

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often at most the files of a certificate are looked at.
const lookEvery = time.Second

// Certificate is a certificate and its key in two PEM files. When the files change they
// are read again, and if they do not belong together the pair before stays.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu     sync.Mutex // guards the following
	pair   *tls.Certificate
	looked time.Time
	read   [2]fileState // when pair was, or could not be
}

// fileState changes when a file does.
type fileState struct {
	changed time.Time
	size    int64
}

// NewCertificate reads the two files. log gets a line when they have been read again,
// and a warning for each change that does not make a pair.
func NewCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.looked, c.read = time.Now(), c.state()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c.pair = &pair
	return c, nil
}

// Get is the GetCertificate of a tls.Config. It never fails, and may block for as long
// as the files take to be read.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= lookEvery {
		c.look()
	}
	return c.pair, nil
}

// look reads the files if they have changed. It is called with mu held.
func (c *Certificate) look() {
	c.looked = time.Now()
	state := c.state()
	if state == c.read {
		return
	}
	c.read = state
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		c.log.Warn("certificate not changed", "file", c.certFile, "error", err,
			"note", "the one before stays; give a certificate and a key that belong together")
		return
	}
	c.pair = &pair
	c.log.Info("certificate changed", "file", c.certFile, "valid_until", pair.Leaf.NotAfter)
}

// state is that of both files, zero for one that is not there.
func (c *Certificate) state() (s [2]fileState) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			s[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return s
}
