package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// memory is the file in which clients keep what they have learned of the paths to
// their servers. Several may share it: each change reads the file again and puts
// another one in its place at once, so that it is whole at any time; of two
// changes at the same moment one may be lost. There is no secret in it.
type memory struct {
	file string // "": nothing is kept
}

const (
	maxMemory  = 64 << 10 // bytes of the file
	maxServers = 64       // in it
)

// remembered is the file's content. Durations are nanoseconds.
type remembered struct {
	Version int
	Servers map[string]facts // by "host:port"
}

// memoryVersion is raised when what clients learned before should not be believed any
// longer, as well as when the format changes. Version 1 was learned from single
// deaths, also those that the server had caused.
const memoryVersion = 2

// errMemory is wrapped by what is wrong with the content of the file.
var errMemory = errors.New("not a state file of this version")

// load returns what is known of server. It is no error if that is nothing.
func (m memory) load(server string, now time.Time) (facts, error) {
	if m.file == "" {
		return facts{}, nil
	}
	all, err := m.read(now)
	return all.Servers[server], err
}

func (m memory) read(now time.Time) (remembered, error) {
	none := remembered{Version: memoryVersion, Servers: map[string]facts{}}
	f, err := os.Open(m.file)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMemory+1))
	if err != nil {
		return none, err
	}
	version, err := versionOf(text)
	if err == nil && version < memoryVersion {
		return none, nil
	}
	var all remembered
	if err != nil || version > memoryVersion || json.Unmarshal(text, &all) != nil {
		return none, fmt.Errorf("%s: %w", m.file, errMemory)
	}
	kept := none
	for server, f := range all.Servers {
		if f.expire(now); f != (facts{}) && f.valid(now) {
			kept.Servers[server] = f
		}
	}
	return kept, nil
}

// versionOf returns the version of a state file, whose other content may be in
// another format.
func versionOf(text []byte) (int, error) {
	var file struct{ Version int }
	if len(text) > maxMemory {
		return 0, errMemory
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return 0, err
	}
	if file.Version < 1 {
		return 0, errMemory
	}
	return file.Version, nil
}

// valid says whether f is what a client may have written.
func (f facts) valid(now time.Time) bool {
	soon := now.Add(time.Hour) // the clock may have been set
	within := func(d, least time.Duration) bool { return d == 0 || d >= least && d <= factsExpire }
	return within(f.Idle, 0) && within(f.Survived, 0) && within(f.Age, leastAge) && f.IdleAt.Before(soon) && f.AgeAt.Before(soon)
}

// store keeps what is known of server, and of others what the file holds. A file
// that cannot be read is replaced.
func (m memory) store(server string, f facts, now time.Time) error {
	if m.file == "" {
		return nil
	}
	all, _ := m.read(now)
	all.Servers[server] = f
	for len(all.Servers) > maxServers {
		oldest := ""
		for name, other := range all.Servers {
			if name != server && (oldest == "" || other.latest().Before(all.Servers[oldest].latest())) {
				oldest = name
			}
		}
		delete(all.Servers, oldest)
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	dir := filepath.Dir(m.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, filepath.Base(m.file)+".*") // for its owner only
	if err != nil {
		return err
	}
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), m.file)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

func (f facts) latest() time.Time {
	if f.AgeAt.After(f.IdleAt) {
		return f.AgeAt
	}
	return f.IdleAt
}
