package auth

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	publicWord  = "culvert-key"
	privateWord = "culvert-private-key"
	keySize     = 32
	// maxKeyFile bounds a private key's file in bytes.
	maxKeyFile = 64 << 10
)

// PublicKey is an X25519 public key, of a client or of a server.
type PublicKey struct {
	Bytes   [keySize]byte
	Comment string // for people and logs
}

// ParsePublicKey reads a public key as String writes it: culvert-key BASE64, and
// perhaps a comment.
func ParsePublicKey(text string) (PublicKey, error) {
	b, comment, err := parseKey(publicWord, text)
	if err != nil {
		return PublicKey{}, err
	}
	key := PublicKey{Comment: comment}
	if copy(key.Bytes[:], b); key.Bytes == [keySize]byte{} {
		return PublicKey{}, errors.New("the key is all zeros")
	}
	return key, nil
}

// parseKey reads a line with a key of 32 bytes. Its errors do not repeat the line.
func parseKey(word, text string) (b []byte, comment string, err error) {
	fields := strings.Fields(text)
	switch {
	case len(fields) == 0 || fields[0] != word:
		return nil, "", fmt.Errorf("does not begin with %s; write %s BASE64 [COMMENT], as keygen prints it", word, word)
	case len(fields) == 1:
		return nil, "", fmt.Errorf("nothing follows %s", word)
	}
	b, err = base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil || len(b) != keySize {
		return nil, "", fmt.Errorf("what follows %s is not a key: it has 44 characters of base64", word)
	}
	return b, strings.Join(fields[2:], " "), nil
}

// String is the key as a line.
func (k PublicKey) String() string {
	return strings.TrimSpace(publicWord + " " + base64.StdEncoding.EncodeToString(k.Bytes[:]) + " " + k.Comment)
}

// Fingerprint is the key as people compare it.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k.Bytes[:])
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// PrivateKey is an X25519 private key. It shows itself to nobody.
type PrivateKey struct {
	key     *ecdh.PrivateKey
	comment string
}

// NewPrivateKey makes a key.
func NewPrivateKey(comment string) PrivateKey {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return PrivateKey{key, strings.Join(strings.Fields(comment), " ")}
}

// ReadPrivateKey reads the key from a file that Save has written. The warnings name a
// file that others than its owner can read.
func ReadPrivateKey(path string) (k PrivateKey, warnings []string, err error) {
	data, warnings, err := readSecretFile(path, maxKeyFile)
	if err != nil {
		return k, nil, err
	}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if k.key != nil {
			return PrivateKey{}, nil, fmt.Errorf("%s:%d: a second key; leave one", path, number)
		}
		b, comment, err := parseKey(privateWord, line)
		if err == nil {
			k.comment = comment
			k.key, err = ecdh.X25519().NewPrivateKey(b)
		}
		if err != nil {
			return PrivateKey{}, nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
	}
	if k.key == nil {
		return k, nil, fmt.Errorf("%s: no key in it; make one with keygen", path)
	}
	return k, warnings, nil
}

// Save writes the key to a new file that only its owner can read, and makes the
// folder if there is none. It never overwrites a file (fs.ErrExist).
func (k PrivateKey) Save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "# private: whoever has this line is taken for its owner\n%s %s %s\n",
		privateWord, base64.StdEncoding.EncodeToString(k.key.Bytes()), k.comment)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// Public is the key's other half.
func (k PrivateKey) Public() PublicKey {
	return PublicKey{Bytes: [keySize]byte(k.key.PublicKey().Bytes()), Comment: k.comment}
}

// ECDH is the key for a handshake; nil of the zero PrivateKey.
func (k PrivateKey) ECDH() *ecdh.PrivateKey { return k.key }

func (PrivateKey) String() string         { return "[private key]" }
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }
