package link

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"
)

// SessionID names a session: 128 random bits that its client chose. Knowing it
// is not enough to resume the session, the identity must be the same too.
type SessionID [16]byte

// String is a short form for logs, which does not allow to resume.
func (id SessionID) String() string { return hex.EncodeToString(id[:4]) }

func newSessionID() (id SessionID) {
	rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return id
}

const version = 1

const (
	flagResume byte = 1 << 0 // hello: the session has had a carrier; reply: it was resumed
	flagSecure byte = 1 << 1 // the sender's end of the carrier is under TLS
	flagBeside byte = 1 << 2 // hello: the client has another carrier, and would leave it gently; reply: so will the server

	helloSize = 34
	replySize = 22
)

// hello is what the client says with the upgrade request.
//
//	0 version | 1 flags | 2 session id (16) | 18 received (8) | 26 max message (4) | 30 CRC-32C (4)
//
// Later versions may put more in front of the CRC, which is always the last
// four bytes; a decoder skips what it does not know.
type hello struct {
	resume     bool
	secure     bool
	beside     bool
	id         SessionID
	received   uint64 // bytes of the server's stream that the client has
	maxMessage uint32 // largest message the client accepts
}

// reply is what the server says with the upgrade response.
//
//	0 version | 1 flags | 2 received (8) | 10 max message (4) | 14 resume window, ms (4) | 18 CRC-32C (4)
type reply struct {
	resumed    bool
	secure     bool
	beside     bool
	received   uint64 // bytes of the client's stream that the server has
	maxMessage uint32
	window     time.Duration // how long the server keeps a detached session
}

func flags(resume, secure, beside bool) (f byte) {
	if resume {
		f |= flagResume
	}
	if secure {
		f |= flagSecure
	}
	if beside {
		f |= flagBeside
	}
	return f
}

func (h hello) encode() []byte {
	b := make([]byte, 0, helloSize)
	b = append(b, version, flags(h.resume, h.secure, h.beside))
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.received)
	b = binary.BigEndian.AppendUint32(b, h.maxMessage)
	return seal(b, true)
}

func decodeHello(b []byte) (hello, error) {
	if err := checkHandshake(b, helloSize); err != nil {
		return hello{}, err
	}
	h := hello{
		resume:     b[1]&flagResume != 0,
		secure:     b[1]&flagSecure != 0,
		beside:     b[1]&flagBeside != 0,
		received:   binary.BigEndian.Uint64(b[18:]),
		maxMessage: binary.BigEndian.Uint32(b[26:]),
	}
	copy(h.id[:], b[2:])
	return h, checkMaxMessage(h.maxMessage)
}

func (r reply) encode() []byte {
	b := make([]byte, 0, replySize)
	b = append(b, version, flags(r.resumed, r.secure, r.beside))
	b = binary.BigEndian.AppendUint64(b, r.received)
	b = binary.BigEndian.AppendUint32(b, r.maxMessage)
	b = binary.BigEndian.AppendUint32(b, uint32(r.window.Milliseconds()))
	return seal(b, true)
}

func decodeReply(b []byte) (reply, error) {
	if err := checkHandshake(b, replySize); err != nil {
		return reply{}, err
	}
	r := reply{
		resumed:    b[1]&flagResume != 0,
		secure:     b[1]&flagSecure != 0,
		beside:     b[1]&flagBeside != 0,
		received:   binary.BigEndian.Uint64(b[2:]),
		maxMessage: binary.BigEndian.Uint32(b[10:]),
		window:     time.Duration(binary.BigEndian.Uint32(b[14:])) * time.Millisecond,
	}
	return r, checkMaxMessage(r.maxMessage)
}

// checkHandshake verifies length, checksum and version, in this order: a
// version that a bit flip made up is not worth reporting.
func checkHandshake(b []byte, size int) error {
	n := len(b) - trailerSize
	switch {
	case len(b) < size:
		return fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	case crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]):
		return fmt.Errorf("%w: checksum mismatch", ErrMalformed)
	case b[0] != version:
		return fmt.Errorf("%w: %d, want %d", ErrVersion, b[0], version)
	}
	return nil
}

// minMaxMessage keeps messages large enough to be worth sending.
const minMaxMessage = 4 << 10

func checkMaxMessage(n uint32) error {
	if n < minMaxMessage {
		return fmt.Errorf("%w: largest message of %d bytes", ErrMalformed, n)
	}
	return nil
}
