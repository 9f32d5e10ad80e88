package front

import (
	"crypto/tls"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often at most the files of a certificate are looked at.
const lookEvery = time.Second

// Certificate is a certificate and its key in two files. When the files change they are
// read again. If they cannot be used, the pair before stays, and they are read again until
// they can be.
type Certificate struct {
	certFile, keyFile string
	load              func(certFile, keyFile string) (*tls.Certificate, error)
	log               *slog.Logger

	mu     sync.Mutex // guards the following
	pair   *tls.Certificate
	looked time.Time
	read   [2]fileState // of pair, or when it could not be read last
	failed string       // why it could not be, "" if it could
}

// fileState describes a regular file as it was when it was looked at; nil: there was none.
type fileState struct{ fs.FileInfo }

// same reports whether it is the same file and has not changed.
func (s fileState) same(other fileState) bool {
	if s.FileInfo == nil || other.FileInfo == nil {
		return s.FileInfo == other.FileInfo
	}
	// Another file may take its place and have the same size and time.
	return os.SameFile(s.FileInfo, other.FileInfo) && s.ModTime().Equal(other.ModTime()) && s.Size() == other.Size()
}

// NewCertificate reads the two files with load. log gets a line when they have been read
// again, and a warning for each change that does not make a pair and for each new reason
// why they cannot be read.
func NewCertificate(certFile, keyFile string, load func(certFile, keyFile string) (*tls.Certificate, error), log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, load: load, log: log}
	c.looked, c.read = time.Now(), c.state()
	var err error
	c.pair, err = load(certFile, keyFile)
	return c, err
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

// look reads the files if they have changed or could not be read. It is called with mu
// held.
func (c *Certificate) look() {
	c.looked = time.Now()
	state := c.state()
	changed := !state[0].same(c.read[0]) || !state[1].same(c.read[1])
	if !changed && c.failed == "" {
		return
	}
	c.read = state
	pair, err := c.load(c.certFile, c.keyFile)
	if err != nil {
		if changed || err.Error() != c.failed {
			c.log.Warn("certificate not changed", "file", c.certFile, "error", err, "note", "the one before stays")
		}
		c.failed = err.Error()
		return
	}
	c.pair, c.failed = pair, ""
	c.log.Info("certificate changed", "file", c.certFile, "valid_until", pair.Leaf.NotAfter)
}

// state is that of both files, nil for one that does not exist or is a pipe, which is
// read only once.
func (c *Certificate) state() (s [2]fileState) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			s[i] = fileState{info}
		}
	}
	return s
}
