package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math"
)

// Overhead is by how many bytes a sealed message is longer than what is in it.
const Overhead = 16

// rekeyEvery is after how many messages a key is replaced by one made of it, so that
// what was sent before stays closed to whoever finds the key, and AES-GCM is used far
// within its limits: 8 GiB at most under one key.
const rekeyEvery = 1 << 16

// Cipher seals or opens the messages of one direction, each with the next number. It
// is the CipherState of Noise, and not safe for concurrent use.
type Cipher struct {
	aead  cipher.AEAD
	key   [32]byte
	n     uint64 // number of the next message
	nonce [12]byte
}

func newCipher(key [32]byte) *Cipher {
	c := &Cipher{key: key}
	c.keyed()
	return c
}

func (c *Cipher) keyed() {
	block, err := aes.NewCipher(c.key[:])
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	if c.aead, err = cipher.NewGCM(block); err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
}

// next sets the nonce of the next message.
func (c *Cipher) next() {
	if c.n > 0 && c.n%rekeyEvery == 0 {
		c.rekey()
	}
	binary.BigEndian.PutUint64(c.nonce[4:], c.n)
	c.n++
}

// rekey is Rekey of Noise, 4.2.
func (c *Cipher) rekey() {
	binary.BigEndian.PutUint64(c.nonce[4:], math.MaxUint64)
	var zeros [32]byte
	copy(c.key[:], c.aead.Seal(nil, c.nonce[:], zeros[:], nil))
	c.keyed()
}

// Seal appends plain, sealed, to dst, which must not overlap with it.
func (c *Cipher) Seal(dst, plain []byte) []byte {
	c.next()
	return c.aead.Seal(dst, c.nonce[:], plain, nil)
}

// Open opens a message in place and returns what was in it. The error is ErrBroken:
// it was changed, or is not the one that comes next. Nothing can be opened after it.
func (c *Cipher) Open(b []byte) ([]byte, error) {
	c.next()
	plain, err := c.aead.Open(b[:0], c.nonce[:], b, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: message %d", ErrBroken, c.n-1)
	}
	return plain, nil
}
